"""What is relied on of Lightning's and jsonargparse's private parts and of the texts of their messages.

Each has a name here and a test that fails with a release in which it is gone.
"""

from __future__ import annotations

import csv
import logging
import os
import re
import sys
import warnings
from argparse import SUPPRESS
from collections.abc import Callable, Mapping
from pathlib import Path
from subprocess import Popen
from typing import Any, Union, get_args, get_origin

from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from bnfree.files import whole_file


class SteppedCLI(LightningCLI):
    """LightningCLI whose private steps have names that a subclass may override."""

    def read_checkpoint(self) -> None:
        """Comes after parsing. Lightning's own lets the values that a checkpoint remembers win over the user's."""

    def seed(self) -> None:
        """Seeds all random generators by `seed_everything` of the config."""
        super()._set_seed()

    def run_subcommand(self, subcommand: str) -> None:
        """Runs the Trainer's method of that name and what comes before and after it."""
        super()._run_subcommand(subcommand)

    @property
    def subcommand_parsers(self) -> Mapping[str, LightningArgumentParser]:
        """Parser of each subcommand."""
        return self._subcommand_parsers

    def _parse_ckpt_path(self) -> None:
        self.read_checkpoint()

    def _set_seed(self) -> None:
        self.seed()

    def _run_subcommand(self, subcommand: str) -> None:
        self.run_subcommand(subcommand)


class KeepingWriter(ExperimentWriter):
    """Lightning's writer of `metrics.csv`, which leaves alone what its directory holds."""

    def _check_log_dir_exists(self) -> None:
        # The parent warns and deletes metrics.csv; here the directory is expected to hold files.
        return

    def start_with(self, rows: list[dict[str, str]]) -> None:
        """Writes the rows of an earlier run, in place of a file that is there."""
        self.rows = len(rows)
        path = Path(self.metrics_file_path)
        if not rows:
            path.unlink(missing_ok=True)
            return
        self.metrics_keys = sorted(rows[0])
        self._write(rows)

    rows = 0
    """How many rows the file has."""

    def save(self) -> None:
        """Writes what has been logged since the last time."""
        self.rows += len(self.metrics)
        super().save()

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        # The parent empties the file first, and a process that ends then has lost all rows.
        with Path(self.metrics_file_path).open(newline="") as file:
            rows = list(csv.DictReader(file))
        self._write(rows)

    def _write(self, rows: list[dict[str, str]]) -> None:
        with whole_file(self.metrics_file_path) as unfinished, unfinished.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)


class WatchedLauncher(_SubprocessScriptLauncher):
    """Lightning's starter of the other processes of a machine, with a watch of our own over them.

    Lightning's own kills the first process within five seconds after another has ended, whatever it is doing.

    Args:
        launcher: Lightning's own.
        start: called before the processes are started.
        watch: called with the processes.
    """

    def __init__(
        self,
        launcher: _SubprocessScriptLauncher,
        start: Callable[[], None],
        watch: Callable[[list[Popen[bytes]]], None],
    ) -> None:
        super().__init__(launcher.cluster_environment, launcher.num_processes, launcher.num_nodes)
        self._start, self._watch = start, watch

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Starts the processes unless somebody else has, and calls a function."""
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            self._start()
            self._call_children_scripts()
            self._watch(self.procs)
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)


def watch_processes(trainer: Trainer, start: Callable[[], None], watch: Callable[[list[Popen[bytes]]], None]) -> None:
    """Gives a Trainer that starts processes a `WatchedLauncher`."""
    if type(trainer.strategy.launcher) is _SubprocessScriptLauncher:
        trainer.strategy._launcher = WatchedLauncher(trainer.strategy.launcher, start, watch)


def accumulates(trainer: Trainer) -> bool:
    """Whether the optimizer has not made its step yet with the gradients of the batch that has just been trained on."""
    return trainer.fit_loop.epoch_loop._should_accumulate()


def agree_before_each_batch(trainer: Trainer, agree: Callable[[], None]) -> None:
    """Calls a function in all processes before each batch, where Lightning asks whether the first was to end."""
    setattr(trainer.fit_loop.epoch_loop, "_broadcast_sigterm_tensor", agree)  # noqa: B010 - mypy refuses to assign


def last_saved_step(callback: ModelCheckpoint) -> int:
    """The step of the last checkpoint that the callback has written."""
    return callback._last_global_step_saved


def option_strings(parser: LightningArgumentParser) -> list[str]:
    """All options of a parser, with their dashes."""
    return [option for action in parser._actions for option in action.option_strings]


def argument_names(parser: LightningArgumentParser) -> list[str]:
    """Dotted names of all arguments of a parser."""
    return [action.dest for action in parser._actions]


def name_groups(parser: LightningArgumentParser, titles: Mapping[str, str], other: str) -> None:
    """Gives the groups of a parser's help headings in place of the first lines of docstrings.

    Args:
        parser: the parser.
        titles: by the dotted name of the group's arguments.
        other: heading of the arguments of a function or class that stand at the top.
    """
    names = {id(group): name for name, group in (parser.groups or {}).items()}
    # The first two are argparse's own.
    for group in parser._action_groups[2:]:
        group.title = titles.get(names.get(id(group), ""), other)


def hide(parser: LightningArgumentParser, hidden: Callable[[str], bool]) -> None:
    """Leaves arguments out of the help, by their dotted names."""
    for action in parser._actions:
        if hidden(action.dest):
            action.help = SUPPRESS


def integers_first(parser: LightningArgumentParser) -> None:
    """Reads `1` as the integer where an argument takes integers and fractions: one batch, and not all of them.

    Python keeps one object for all unions of the same types, in the order of whichever was written first, and
    jsonargparse tries the types in this order.
    """
    for action in parser._actions:
        hint = getattr(action, "_typehint", None)
        if get_origin(hint) is Union and {int, float} <= set(get_args(hint)):
            kinds = sorted(get_args(hint), key=lambda kind: {int: 0, float: 1}.get(kind, 2))
            setattr(action, "_typehint", Union[tuple(kinds)])  # noqa: B010, UP007 - mypy knows no such attribute


# Loggers of Lightning that need a package which it does not bring, and how each says whether it is there.
LOGGER_PACKAGES = {
    "WandbLogger": ("wandb", "wandb", "_WANDB_AVAILABLE"),
    "MLFlowLogger": ("mlflow", "mlflow", "_MLFLOW_AVAILABLE"),
    "CometLogger": ("comet-ml", "comet", "_COMET_AVAILABLE"),
    "LitLogger": ("litlogger", "litlogger", "_LITLOGGER_AVAILABLE"),
}


def missing_package(logger: type) -> str | None:
    """The package that a logger of Lightning needs and that is not installed; None: nothing is missing.

    Args:
        logger: class of the logger, or one that is derived from it.
    """
    for base in logger.__mro__:
        package, module, flag = LOGGER_PACKAGES.get(base.__name__, ("", "", ""))
        if package and base.__module__ == f"lightning.pytorch.loggers.{module}":
            return None if getattr(sys.modules[base.__module__], flag) else package
    return None


def leave_out_messages(subcommand: str) -> None:
    """Leaves out Lightning's advertisements and jsonargparse's warnings about the calls that Lightning makes.

    Args:
        subcommand: what is going to run.
    """
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_worth_reading)
    if subcommand != "fit":
        # It names the checkpoint callbacks, which have nothing to do in an evaluation.
        warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks")
        # Predictions carry the index of their image themselves.
        warnings.filterwarnings("ignore", message="Couldn't infer the batch indices")
    warnings.filterwarnings("ignore", message="The dirpath has changed from")
    # A fit says so itself, in a line that says what to do.
    warnings.filterwarnings("ignore", message="`max_epochs` was not set")
    # Its size in MB is counted as if in 32 bits, which the weights are in mixed precision.
    warnings.filterwarnings("ignore", message="Precision .*-mixed is not supported by the model summary")
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
    # The run directory is the command's own, and resuming into it is what the user has asked for.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")


def _is_worth_reading(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    of_no_use = (
        "Trainer already configured with model summary",
        "TPU available: False",
        "Loading `train_dataloader` to estimate",
    )
    return "Tip:" not in message and not message.startswith(of_no_use)


# jsonargparse's complaints: which argument, and what is wrong with it.
PARSER_KEY = re.compile(r'Parser key "([^"]+)":')
REQUIRED = re.compile(r"the following arguments are required: ([\w., ]+)")
UNRECOGNIZED = re.compile(r"^unrecognized arguments: (\S+)")
UNKNOWN_KEY = re.compile(r"does not accept option '([^']+)'")
WITHOUT_VALUE = re.compile(r"^argument (?:-\w/)?(--[\w.]+): expected one argument")
NOT_DOTTED = re.compile(r"Expected a dot import path string: (\S+)")
NO_ATTRIBUTE = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
NO_MODULE = re.compile(r"No module named '([\w.]+)'")
NO_SUBCLASS = re.compile(r"Import path (?:(\S+) )?does not .*? (\w+)$", re.MULTILINE)
UNKNOWN_INIT_ARGUMENT = re.compile(r"Option '([^']+)' is not accepted")
CLASS_PATH = re.compile(r"class_path='([\w.]+)'")
EXPECTED_TYPE = re.compile(r"Expected a <class '(\w+)'>")
EXPECTED_LITERAL = re.compile(r"Literal(\[[^\]]*\])")
GIVEN_VALUE = re.compile(r"(?:Given|Got) value: (.+?)(?=\. Got value|\n|$)")
NESTED_VALUE = re.compile(r"NestedArg\(key='.*', val=(.*)\)")
NO_CONFIG = ("Problems parsing", "Unexpected config")
TRIED_TYPES = ("Does not validate against", "Problem with given")
# Lightning's and torch's.
WRONG_ACCELERATOR_OR_STRATEGY = re.compile(r"invalid (accelerator|strategy) name: `\w+='([^']+)'`")
WRONG_STATE_DICT = "Error(s) in loading state_dict for"
UNKNOWN_METRIC = "conditioned on metric"
CALLBACK_TWICE = re.compile(r"Found more than one stateful callback of type `(\w+)`")
# What a process says of another one that is gone: gloo, NCCL and the store through which they meet.
LOST_PROCESS = re.compile(
    r"gloo|NCCL|TCPStore|[Cc]onnection (?:was )?(?:closed|reset|refused)|[Bb]roken pipe|remote (?:worker|process)"
)
