"""The argument parser of the subcommands that train and evaluate."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from typing import Any, Literal, NoReturn

import yaml
from jsonargparse import ActionYesNo, Namespace, get_loader, set_loader
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser

from bnfree.datamodules.base import ImageDataModule
from bnfree.errors import InputError
from bnfree.import_names import class_paths_of_today
from bnfree.lightning_modules.compat import integers_first, name_groups
from bnfree.lightning_modules.training.class_names import OPTION
from bnfree.lightning_modules.training.config.explanations import first_cause

MODE = "yaml_of_today"
"""YAML in which classes may have their earlier names."""
set_loader(MODE, lambda text: class_paths_of_today(get_loader("yaml")(text)), (yaml.YAMLError,))


HEADINGS = {
    "model": "the LightningModule, with its network, optimizer and schedule",
    "data": "the images",
    "trainer": "Lightning's Trainer",
    "best_checkpoint": "best.ckpt, of the greatest validation accuracy (ModelCheckpoint)",
    "last_checkpoint": "last.ckpt, after each epoch (ModelCheckpoint)",
    "lr_monitor": "the logged learning rate (LearningRateMonitor)",
}


class ParseFailure(SystemExit):
    """The parser's complaint, to be put into words that help.

    A `SystemExit` as in argparse, since jsonargparse catches most other exceptions on their way out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(2)
        self.message = message


class CommandParser(LightningArgumentParser):
    """Raises `ParseFailure` where other parsers print their usage and exit, and knows earlier names of classes.

    What a config leaves out and its data know is filled in: `num_classes` and `in_channels` of the backbone, and
    `image_size` of the data where it is null.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"parser_mode": MODE, "allow_abbrev": False, **kwargs})

    def parse_args(self, args: Sequence[str] | None = None, *others: Any, **options: Any) -> Namespace:  # type: ignore[override]
        """Parses words, in which a class may have its earlier name: `--model=lightning_modules.ImageClassifier`."""
        words = [_of_today(word) for word in (sys.argv[1:] if args is None else args)]
        try:
            config = super().parse_args(words, *others, **options)
        except SystemExit as left:
            place = _left_in_import(left)
            if place is None:
                raise
            raise InputError(
                f"{place}: the module ends Python (sys.exit) while it is imported; put what is a script of its own "
                "below if __name__ == '__main__'."
            ) from left
        if not (options.get("defaults", True) and _may_follow_data(_section(config))):
            return config
        given = _section(super().parse_args(words, *others, **{**options, "defaults": False}))
        filled_in = _filled_in(_section(config), given)
        return super().parse_args([*words, *filled_in], *others, **options) if filled_in else config

    def format_help(self, *arguments: Any) -> str:
        """The help, in which each group of arguments has a heading of its own."""
        name_groups(self, HEADINGS, "arguments")
        text: str = super().format_help(*arguments)
        return text

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises `ParseFailure`; parsers that are internal to jsonargparse raise their own exception."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise ParseFailure(message)


def _left_in_import(left: SystemExit) -> str | None:
    """File and line of a module that has raised it while it was imported; None: nothing was being imported."""
    frames = traceback.extract_tb(left.__traceback__)
    imports = any(frame.name == "<module>" for frame in frames)
    return (
        f"{frames[-1].filename}, line {frames[-1].lineno}" if imports and not isinstance(left, ParseFailure) else None
    )


def _of_today(word: str) -> str:
    name, equals, value = word.rpartition("=")
    return f"{name}{equals}{class_paths_of_today(value)}"


def _section(config: Namespace) -> Namespace:
    """What is below the subcommand, if there is one."""
    section: Namespace = config[config.subcommand] if config.get("subcommand") else config
    return section


def _may_follow_data(section: Namespace) -> bool:
    """Whether the data could know what the network's arguments do not say; data of unknown classes are not asked."""
    backbone, data = section.get("model.init_args.backbone.init_args"), section.get("data")
    if not isinstance(backbone, Namespace) or not isinstance(data, Namespace) or "num_classes" not in backbone:
        return False
    module, _, name = data.class_path.rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    if not (isinstance(kind, type) and issubclass(kind, ImageDataModule)):
        return False
    shape = getattr(kind, "image_shape", (None,))
    known = (getattr(kind, "num_classes", None), shape[0])
    return known != (backbone.num_classes, backbone.get("in_channels", shape[0]))


def _filled_in(section: Namespace, given: Namespace) -> list[str]:
    """Options for what was not given and the data know; none where the data are not there."""
    name = "model.init_args.backbone.init_args"
    backbone, said = section[name], given.get(name) or Namespace()
    size_is_open = section.data.get("init_args", Namespace()).get("image_size", 0) is None
    if "num_classes" in said and not size_is_open:
        return []
    try:
        data: Any = build_data(section)
    except InputError:
        # They are missed by those who want them; what a network costs can be counted without.
        return []
    known = {"num_classes": data.num_classes, "in_channels": data.image_shape[0]}
    values = {key: value for key, value in known.items() if key in backbone and key not in said}
    options = [f"--model.backbone.{key}={value}" for key, value in values.items() if value != backbone[key]]
    return [*options, f"--data.image_size={data.image_shape[1]}"] if size_is_open else options


def build_data(config: Namespace) -> LightningDataModule:
    """The data module of a config, which must have a data section.

    Args:
        config: what a parser of `fit` or with `add_network_arguments` has read.

    Raises:
        InputError: arguments that the data module refuses, or files that are missing.
    """
    parser = CommandParser()
    parser.add_subclass_arguments(LightningDataModule, "data")
    try:
        data: LightningDataModule = parser.instantiate_classes(Namespace(data=config.data)).data
    except ValueError as error:
        raise first_cause(error) from None
    return data


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
        "by default runs/<name of the first config>/<date>-<time>-<what is changed of it>.",
    )
    parser.add_argument(
        "--name", type=str | None, default=None, help="What the run is called, in place of what it changes."
    )
    parser.add_argument(
        "--test_after_fit",
        type=bool | Literal["auto"],
        default=False,
        help="After fit, evaluate the best checkpoint on the test set; auto: where the data have one.",
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
