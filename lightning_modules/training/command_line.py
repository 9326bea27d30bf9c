"""`bnfree fit`, `validate`, `test` and `predict`: LightningCLI with run directories.

Importing this module makes the project's backbones, data modules and callbacks known by their short names.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import bnfree.backbones
import bnfree.callbacks
import bnfree.datamodules
import bnfree.lightning_modules
from bnfree import trust
from bnfree.errors import InputError, MachineError
from bnfree.file_bounds import bounded_network
from bnfree.import_names import search_working_directory
from bnfree.lightning_modules.compat import SteppedCLI, leave_out_messages
from bnfree.lightning_modules.training import run_directory
from bnfree.lightning_modules.training.changed_settings import changed_settings
from bnfree.lightning_modules.training.checkpoints import (
    AtomicCheckpointIO,
    check_restorable,
    check_resumable,
    differences,
    read_checkpoint,
    remembered_config,
)
from bnfree.lightning_modules.training.class_names import OPTION, ClassNames
from bnfree.lightning_modules.training.config.dumping import dump_config
from bnfree.lightning_modules.training.config.explanations import (
    explain,
    explain_missing_package,
    explain_runtime_error,
    explain_trainer_error,
    first_cause,
)
from bnfree.lightning_modules.training.config.parser import ALWAYS_ON, CommandParser, ParseFailure, add_arguments
from bnfree.lightning_modules.training.config.sources import complete_arguments, config_files, is_local, values_of
from bnfree.lightning_modules.training.default_callbacks import SavedConfig, default_callbacks
from bnfree.lightning_modules.training.exact_loops import make_resumable
from bnfree.lightning_modules.training.failures import explain_failure
from bnfree.lightning_modules.training.foreign_modules import CalibrationNotice, LoggedMonitor
from bnfree.lightning_modules.training.hyperparameters import Hyperparameters, flat_hyperparameters
from bnfree.lightning_modules.training.loading import checkpoint_to_load
from bnfree.lightning_modules.training.loggers import (
    SERVICES,
    all_loggers,
    check_packages,
    default_loggers,
    finish_wandb_runs,
    in_run_directory,
    open_wandb_run,
    with_directories,
)
from bnfree.lightning_modules.training.messages import result_line, say, say_where_things_are
from bnfree.lightning_modules.training.notes import FoundData, say_notes
from bnfree.lightning_modules.training.processes import PROCESSES, record_error
from bnfree.lightning_modules.training.run_names import run_label, safe
from bnfree.lightning_modules.training.settings import RunSettings, words_of
from bnfree.lightning_modules.training.stopping import StopNow, StopOnSignal, stop
from bnfree.lightning_modules.training.tested_data import TestedData
from bnfree.plugins import BUILT_IN, resolve

# Short names in a config are those of imported classes, and packages import theirs on first use only.
for _package in (bnfree.backbones, bnfree.callbacks, bnfree.datamodules):
    for _name in _package.__all__:
        getattr(_package, _name)
for _name, _place in bnfree.lightning_modules.PUBLIC.items():
    if _place.startswith("modules."):
        getattr(bnfree.lightning_modules, _name)
for _kind in ("optimizer", "model", "data"):
    for _name in BUILT_IN[_kind]:
        resolve(_kind, _name)

COMPOSITION = (
    "Later --config files and options win over earlier ones, key by key; a list replaces a list, and the key "
    "`callbacks+:` (--trainer.callbacks+=Name) appends to it. Help on a class, after --config or --model: "
    "--trainer.callbacks.help AdaptiveGradientClipping."
)


def run_settings(subcommand: str, settings: RunSettings) -> TrainingCLI:
    """Runs one of the four subcommands.

    Args:
        subcommand: `fit`, `validate`, `test` or `predict`.
        settings: of the run.

    Returns:
        What has run.

    Raises:
        InputError: a mistake in what the user gave.
        MachineError: what the machine has failed at.
        Stopped: a signal has ended the run.
    """
    try:
        return TrainingCLI([subcommand, *words_of(settings)])
    except MachineError:
        raise
    except MisconfigurationException as error:
        raise InputError(str(error)) from error
    except (RuntimeError, ImportError) as error:
        explanation = explain_missing_package(error) if isinstance(error, ImportError) else explain_runtime_error(error)
        if explanation is None:
            raise
        raise InputError(explanation) from error
    finally:
        # The processes of a later run must not take the directory of this one.
        os.environ.pop(run_directory.SHARED, None)


class _Held(ExitStack):
    """What a run holds until its end.

    Averaging of weights copies the module with all that it leads to, which is this command, too.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> _Held:
        """The same: nothing is held twice."""
        return self


class TrainingCLI(SteppedCLI):
    """Parses, builds and runs one subcommand.

    To be inherited from as any LightningCLI: `add_arguments_to_parser` for options, `before_fit` and `after_fit` for
    what comes before and after (call those of this class, too).

    Args:
        arguments: subcommand and options; None: those of the script, `sys.argv`.

    Raises:
        InputError: a mistake in what the user gave.

    Example:
        >>> class OwnCommand(TrainingCLI):
        ...     def add_arguments_to_parser(self, parser):
        ...         super().add_arguments_to_parser(parser)
        ...         parser.add_argument("--note", type=str, default="")
        >>> OwnCommand(["fit", "--config", "quickstart", "--note", "as ever"])  # doctest: +SKIP
    """

    def __init__(self, arguments: Sequence[str] | None = None) -> None:
        words = sys.argv[1:] if arguments is None else list(arguments)
        leave_out_messages(words[0] if words else "fit")
        search_working_directory()
        self.arguments = with_directories(complete_arguments(words or ["--help"]))
        self.checkpoint: dict[str, Any] = {}
        self.checkpoint_path: str | None = None
        self.changes: Callback | None = None
        self.text = ""
        self.signals = StopOnSignal()
        self.run_directory: Path | None = None
        # What ends with the run: its claim to the directory.
        self.held = _Held()
        self.fit_metrics: dict[str, float] = {}
        self.test_results: dict[str, float] = {}
        description = {"description": COMPOSITION}
        with self.held:
            super().__init__(
                save_config_callback=None,
                seed_everything_default=0,
                parser_class=CommandParser,
                parser_kwargs={
                    "prog": "bnfree",
                    **dict.fromkeys(self.subcommands(), description),
                },
                args=self.arguments,
                auto_configure_optimizers=False,
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> TrainingCLI:
        """Itself: averaged weights copy a module, whose optimizer's factory knows the parser, which knows this."""
        return self

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds `bnfree`'s own options."""
        add_arguments(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses the command line; what is wrong with it becomes one sentence."""
        try:
            self.config = parser.parse_args(self.arguments)
        except ParseFailure as failure:
            raise InputError(explain(failure.message, self.arguments, self.subcommand_parsers)) from None
        check_packages(self.config[self.config.subcommand].trainer.logger)

    def read_checkpoint(self) -> None:
        """Reads the checkpoint, and says where the user wants something else than it remembers."""
        # Lightning lets the checkpoint's values win here, without a word. Here the user's win, and the others are told.
        options = self.config[self.config.subcommand]
        self.checkpoint_path = options.get("ckpt_path")
        if self.checkpoint_path is not None and not is_local(self.checkpoint_path):
            # Lightning would open what comes from an address without care, and a file of this machine with.
            options.weights_only = options.get("weights_only") is not False
        if self.checkpoint_path is None or not is_local(self.checkpoint_path):
            return
        self.checkpoint = read_checkpoint(self.checkpoint_path, options.get("weights_only") is not False)
        check_restorable(self.checkpoint, self.checkpoint_path)
        effective, remembered = self._as_dict(), remembered_config(self.checkpoint)
        for section, values in remembered.items():
            for line in differences(values, effective.get(section), section):
                # How a network is trained matters to nobody who evaluates it.
                if self.config.subcommand == "fit" or not line.startswith(("model.optimizer", "model.lr_scheduler")):
                    say(line)
        if self.config.subcommand == "fit":
            check_resumable(self.checkpoint, self.checkpoint_path)
            self.changes = changed_settings(remembered.get("model", {}), effective["model"], self.checkpoint_path)

    def _as_dict(self) -> dict[str, Any]:
        parser = self.subcommand_parsers[self.config.subcommand]
        options = self.config[self.config.subcommand]
        dumped: dict[str, Any] = yaml.safe_load(dump_config(parser, options))
        return dumped

    def instantiate_classes(self) -> None:
        """Builds model, data and Trainer; an error of a constructor comes out as the constructor raised it."""
        self.text = self._config_text() if self.subcommand == "fit" else ""
        in_run_directory(self.config[self.subcommand].trainer.logger, self.run_directory)
        try:
            with bounded_network(self.checkpoint_path, f"ckpt_path={self.checkpoint_path!r}"):
                super().instantiate_classes()
        except ValueError as error:
            cause = first_cause(error)
            if cause is error:
                raise
            raise cause from None
        for holder in (self.model, self.datamodule):
            # What is built has passed, and what is written of it from now on is this user's.
            trust.approve(dict(getattr(holder, "hparams", None) or {}))

    def before_instantiate_classes(self) -> None:
        """Claims the run directory, and refuses one that an earlier run has, or another command."""
        options = self.config[self.subcommand]
        if options.trainer.get("fast_dev_run"):
            return
        if self.subcommand != "fit" and options.run_dir is None and self.checkpoint_path is not None:
            self.run_directory = run_directory.run_directory_of(self.checkpoint_path)
        if self.run_directory is None and (options.run_dir is not None or self.subcommand in ("fit", "predict")):
            self.run_directory, created = run_directory.claim(
                options.run_dir, self._recipe_name(), self._label(options)
            )
            self.held.callback(run_directory.remove_if_unused, created)
        elif self.run_directory is not None and self.subcommand == "predict":
            run_directory.create(self.run_directory)
        if self.subcommand == "fit" and self.run_directory is not None:
            self.held.enter_context(run_directory.only_one(self.run_directory))
            run_directory.check_free(self.run_directory, self.checkpoint_path)

    def _label(self, options: Any) -> str:
        if options.name is not None and not safe(options.name):
            raise InputError(f"name={options.name!r} must have letters or digits, for it names a directory.")
        return run_label(self.arguments) if options.name is None else safe(options.name, 80)

    def _recipe_name(self) -> str:
        configs = [config for config in config_files(self.arguments) if config.is_file()]
        if not configs:
            return str(self.config[self.subcommand].model.class_path).rpartition(".")[2]
        first = configs[0].absolute()
        # A run's own config is called config.yaml like that of any other run.
        return first.parent.parent.name if first.parent.parent.parent.name == "runs" else first.stem

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Builds the Trainer, once the model is known to fit the checkpoint."""
        section = self.config_init[self.subcommand]
        if self.checkpoint:
            path = str(self.checkpoint_path)
            section.ckpt_path = checkpoint_to_load(self.model, self.datamodule, self.checkpoint, path)
        options: dict[str, Any] = {**section.trainer, **kwargs}
        if isinstance(options.get("callbacks"), Callback):
            options["callbacks"] = [options["callbacks"]]
        always_on = [section[key] for key in ALWAYS_ON] if self.subcommand == "fit" else []
        options["callbacks"] = default_callbacks(options, always_on, self.run_directory)
        if self.run_directory is not None:
            options["default_root_dir"] = options.get("default_root_dir") or str(self.run_directory.absolute())
        if self.subcommand == "fit" and self.run_directory is not None:
            options["callbacks"].append(SavedConfig(self.text, self.run_directory.absolute()))
            if options.get("logger") is not False and not options.get("barebones"):
                own = default_loggers(self.run_directory.absolute(), self.checkpoint_path, self.checkpoint)
                options["logger"] = all_loggers(options.get("logger"), own)
                values = {**flat_hyperparameters(yaml.safe_load(self.text)), "run_dir": str(self.run_directory)}
                options["callbacks"].append(Hyperparameters(values))
        elif options.get("logger") in (None, True) and not options.get("fast_dev_run"):
            # Evaluating must not write over the metrics of the run.
            options["logger"] = False
        options["callbacks"] += [self.changes] if self.changes is not None else []
        if self.subcommand == "fit":
            states = self.checkpoint.get("callbacks", {})
            options["callbacks"] += [LoggedMonitor(section.best_checkpoint, states), CalibrationNotice()]
        last = section.last_checkpoint if self.subcommand == "fit" else None
        self.signals = StopOnSignal(last if last in options["callbacks"] else None)
        options["callbacks"].append(self.signals)
        options["callbacks"].append(ClassNames(self.checkpoint, self.checkpoint_path, section[OPTION]))
        if self.subcommand == "fit":
            say_notes(self.model, options)
            options["callbacks"] += [TestedData(), FoundData()] if self._tests_after_fit() else [FoundData()]
            if self._tests_after_fit() and self.run_directory is not None:
                options["callbacks"].append(bnfree.callbacks.ConfusionMatrix())
        if self.subcommand == "predict":
            self._add_prediction_writer(options)
        try:
            trainer = self.trainer_class(**options)
        except (ValueError, TypeError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "more than one stateful callback" not in str(error):
                raise
            # A Trainer option of the right type and a wrong value, such as an accelerator that does not exist.
            raise InputError(explain_trainer_error(error)) from error
        PROCESSES.attach(trainer)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        make_resumable(trainer)
        return trainer

    def _tests_after_fit(self) -> bool:
        wanted = self.config[self.subcommand].test_after_fit
        return bool(getattr(self.datamodule, "has_test_images", False) if wanted == "auto" else wanted)

    def _add_prediction_writer(self, options: dict[str, Any]) -> None:
        if not any(isinstance(callback, bnfree.callbacks.PredictionWriter) for callback in options["callbacks"]):
            options["callbacks"].append(bnfree.callbacks.PredictionWriter())

    def _config_text(self) -> str:
        parser = self.subcommand_parsers[str(self.subcommand)]
        options = self.config[self.subcommand].clone()
        # A config says how to train. Where this run lies and what it went on from would bind all later uses to it.
        options.config, options.run_dir, options.ckpt_path = None, None, None
        # Nor are other classes of a later use meant. Left out, since a config beats what stands before it.
        options.pop(OPTION)
        options.pop("name")
        text = dump_config(parser, options)
        content = yaml.safe_load(text)
        trust.approve(content)
        origin = f"# resumed from {self.checkpoint_path}\n" if self.checkpoint_path is not None else ""
        return f"# bnfree {bnfree.__version__}\n{origin}{trust.signature_comment(content)}{text}"

    def run_subcommand(self, subcommand: str) -> None:
        """Runs it; what ends it early comes out as one of the exceptions of `bnfree.errors`, if it is known."""
        earlier_run = open_wandb_run()
        # Lightning's table has sixteen digits.
        own_lines = subcommand in ("validate", "test") and not values_of(self.arguments, "--verbose")
        if own_lines:
            self.config_init[subcommand].verbose = False
        try:
            with self.signals.listening():
                super().run_subcommand(subcommand)
        except StopNow as error:
            PROCESSES.explain(error)
            options = [f"--{OPTION}"] if self.config[subcommand][OPTION] else []
            raise stop(error.number, self.trainer, self.signals, self.run_directory, options) from None
        except Exception as error:
            told = PROCESSES.explain(error) or explain_failure(error, self.run_directory, self.datamodule)
            if told is None and type(error).__module__.partition(".")[0] in SERVICES:
                told = InputError(f"trainer.logger: {' '.join(str(error).split())}")
            record_error(told or error)
            if told is None or told is error:
                raise
            raise told from error
        finally:
            finish_wandb_runs(self.trainer.loggers, earlier_run)
        if own_lines:
            for name, value in self.trainer.callback_metrics.items():
                say(result_line(name, float(value)))

    def after_fit(self) -> None:
        """Says where things are, and evaluates the best checkpoint if the config asks for it."""
        self.fit_metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        best = next(
            (c for c in self.trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor), None
        )
        best_path = best.best_model_path if best is not None else ""
        if self.checkpoint and self.trainer.global_step == self.checkpoint.get("global_step"):
            say(f"Nothing left to train after {self.checkpoint_path}: raise --trainer.max_epochs to go on.")
        elif self.run_directory is not None:
            say_where_things_are(self.run_directory, best)
        if not self._tests_after_fit():
            return
        if best_path:
            self._load_weights(best_path)
        results = self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)
        self.test_results = {name: float(value) for name, value in (results or [{}])[0].items()}
        for name, value in self.test_results.items():
            say(f"{result_line(name, value)} ({'best checkpoint' if best_path else 'last weights'})")

    def _load_weights(self, path: str) -> None:
        """Loads what `bnfree test` of the file would: through a Trainer, callbacks of training would have a say.

        One that averages weights puts back those that training went on with, which are not the file's.
        """
        checkpoint = read_checkpoint(path, self.config[self.subcommand].get("weights_only") is not False)
        self.model.on_load_checkpoint(checkpoint)
        self.trainer.strategy.load_model_state_dict(checkpoint, strict=self.model.strict_loading)
