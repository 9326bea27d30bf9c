"""The argument parser of the subcommands that train and evaluate."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionYesNo, Namespace, get_loader, set_loader
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser

from bnfree.import_names import class_paths_of_today
from bnfree.lightning_modules.compat import integers_first
from bnfree.lightning_modules.training.class_names import OPTION

MODE = "yaml_of_today"
"""YAML in which classes may have their earlier names."""
set_loader(MODE, lambda text: class_paths_of_today(get_loader("yaml")(text)), (yaml.YAMLError,))


class ParseFailure(SystemExit):
    """The parser's complaint, to be put into words that help.

    A `SystemExit` as in argparse, since jsonargparse catches most other exceptions on their way out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(2)
        self.message = message


class CommandParser(LightningArgumentParser):
    """Raises `ParseFailure` where other parsers print their usage and exit, and knows earlier names of classes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"parser_mode": MODE, "allow_abbrev": False, **kwargs})

    def parse_args(self, args: Sequence[str] | None = None, *others: Any, **options: Any) -> Namespace:  # type: ignore[override]
        """Parses words, in which a class may have its earlier name: `--model=lightning_modules.ImageClassifier`."""
        words = sys.argv[1:] if args is None else args
        return super().parse_args([_of_today(word) for word in words], *others, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises `ParseFailure`; parsers that are internal to jsonargparse raise their own exception."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise ParseFailure(message)


def _of_today(word: str) -> str:
    name, equals, value = word.rpartition("=")
    return f"{name}{equals}{class_paths_of_today(value)}"


# Of the same shape: where a checkpoint goes, under a name that does not change from run to run.
BEST_CHECKPOINT: dict[str, Any] = {"filename": "best", "monitor": "val/acc", "mode": "max"}
# Lightning's own `save_last` is refreshed only together with a better checkpoint, and is not the last epoch.
LAST_CHECKPOINT: dict[str, Any] = {"filename": "last", "every_n_epochs": 1, "save_on_train_epoch_end": True}
ALWAYS_ON = ("best_checkpoint", "last_checkpoint", "lr_monitor")


def add_arguments(parser: LightningArgumentParser) -> None:
    """Adds what `bnfree` has beyond Lightning's own options, the same to each subcommand.

    A config that `fit` has saved serves the other subcommands too, which therefore accept all of its keys.
    """
    integers_first(parser)
    parser.add_argument(
        "--run_dir",
        type=str | None,
        default=None,
        help="Directory of the run, for its config, metrics and checkpoints; "
        "by default runs/<name of the first config>/<date>-<time>.",
    )
    parser.add_argument(
        "--test_after_fit", type=bool, default=False, help="After fit, evaluate the best checkpoint on the test set."
    )
    parser.add_argument(
        f"--{OPTION}",
        action=ActionYesNo,
        nargs="?",
        default=False,
        help="Take a checkpoint or packed file for data with other class names than it was trained on.",
    )
    for key, values in (("best_checkpoint", BEST_CHECKPOINT), ("last_checkpoint", LAST_CHECKPOINT)):
        parser.add_lightning_class_args(ModelCheckpoint, key)
        fixed = {"auto_insert_metric_name": False, "enable_version_counter": False}
        parser.set_defaults({f"{key}.{name}": value for name, value in {**values, **fixed}.items()})
    parser.add_lightning_class_args(LearningRateMonitor, "lr_monitor")
