"""The network that a config describes, built alone: no data, no trainer."""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, Namespace
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import nn

from bnfree import trust
from bnfree.errors import InputError
from bnfree.file_bounds import bounded_network
from bnfree.import_names import search_working_directory
from bnfree.lightning_modules.compat import argument_names, hide, leave_out_messages
from bnfree.lightning_modules.training import command_line as _short_names  # noqa: F401
from bnfree.lightning_modules.training.checkpoints import read_checkpoint
from bnfree.lightning_modules.training.config.explanations import explain, first_cause
from bnfree.lightning_modules.training.config.found import check_found
from bnfree.lightning_modules.training.config.parser import CommandParser, ParseFailure, add_arguments
from bnfree.lightning_modules.training.config.sources import complete_arguments, options_of
from bnfree.lightning_modules.training.loading import check_weights
from bnfree.lightning_modules.training.settings import FitSettings, words_of
from bnfree.state_dicts import network_name
from bnfree.tickets import is_ticket, read_ticket
from bnfree.users_words import under


def add_network_arguments(parser: CommandParser, shown_too: Collection[str] = (), required: bool = True) -> None:
    """Lets a parser accept every key of the config of a fit, and shows those that a network and its images need.

    Args:
        parser: the parser.
        shown_too: other keys to show, such as `data`.
        required: whether the network must be given.
    """
    before = set(argument_names(parser))
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="Another YAML config on top of the first.")
    parser.add_argument(
        "--image_shape",
        type=str | None,
        default=None,
        help="C,H,W of the images; by default those of the data section, which are not looked for.",
    )
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True, required=required)
    shown = before | set(argument_names(parser)) | set(shown_too)
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True, required=False)
    parser.add_argument("--seed_everything", type=bool | int, default=0)
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_method_arguments(Trainer, "fit", skip={"model", "train_dataloaders", "val_dataloaders", "datamodule"})
    add_arguments(parser)
    hide(parser, lambda name: not {name, name.partition(".")[0]} & shown)


def parse(parser: CommandParser, arguments: Sequence[str]) -> Namespace:
    """Parses a subcommand's options, of which `--ckpt_path` alone leads to a config.

    Args:
        parser: the subcommand's parser.
        arguments: subcommand and options.

    Raises:
        InputError: a mistake in what the user gave.
    """
    leave_out_messages(arguments[0])
    search_working_directory()
    arguments = complete_arguments(arguments)
    try:
        return parser.parse_args(arguments[1:])
    except ParseFailure as failure:
        raise InputError(explain(failure.message, arguments, {arguments[0]: parser})) from None


def read_description(source: str | Path, options: Mapping[str, Any] | None = None) -> Namespace:
    """The config of a network and its data, which the functions below build.

    Args:
        source: a YAML config, its name, a run directory, of which it is the last checkpoint, or a checkpoint.
        options: plain values by dotted name that beat it.

    Raises:
        InputError: nothing that describes a network, or a mistake in it.
    """
    parser = CommandParser()
    add_network_arguments(parser)
    return parse(parser, ["summary", *options_of(str(source)), *words_of(FitSettings(options=options or {}))])


def network_of(config: Path) -> tuple[nn.Module, str, tuple[int, ...]]:
    """The network of a run's config.

    Args:
        config: YAML file that a fit has written.

    Returns:
        The network with the weights it starts from, what its weights' names begin with in a checkpoint, and the shape
        (C, H, W) of its images.

    Raises:
        InputError: a network that cannot be built, or of whose images nothing is known.
    """
    parser = CommandParser()
    add_network_arguments(parser)
    check_found(config)
    try:
        parsed = parser.parse_args(["--config", str(config)])
    except ParseFailure as failure:
        raise InputError(f"{str(config)!r} describes no network that can be built here ({failure.message}).") from None
    network, prefix = build_network(parsed)
    return network, prefix, image_shape(parsed, network)


def build_network(config: Namespace) -> tuple[nn.Module, str]:
    """The network, and what its weights' names begin with in a checkpoint.

    A backbone is built alone: the module around it may want files that a count has no use for.

    Args:
        config: what a parser with `add_network_arguments` has read.

    Raises:
        InputError: arguments that the network refuses.
    """
    parser = CommandParser()
    backbone = config.model.get("init_args", Namespace()).get("backbone")
    alone = isinstance(backbone, Namespace) and "class_path" in backbone
    parser.add_subclass_arguments(nn.Module if alone else LightningModule, "network")
    path = config.get("ckpt_path")
    given, section = f"ckpt_path={path!r}", backbone if alone else config.model
    try:
        with bounded_network(path, given):
            built = parser.instantiate_classes(Namespace(network=section)).network
    except ValueError as error:
        raise first_cause(error) from None
    except (RuntimeError, TypeError, ArithmeticError, MemoryError) as error:
        # A class of ours means its arguments; in one of the user's own it may be any mistake.
        if not under(str(section.class_path), trust.ROOTS):
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{section.class_path} cannot be built with its arguments ({reason[:200]}).") from error
    if alone:
        return built, "backbone."
    name = network_name(built)
    return (getattr(built, name), f"{name}.") if name else (built, "")


def load_weights(network: nn.Module, prefix: str, path: str, weights_only: bool) -> None:
    """Loads weights and masks of a checkpoint, or of a ticket file, whose names are those of the network alone.

    Args:
        network: what `build_network` has built.
        prefix: likewise.
        path: file of the checkpoint.
        weights_only: open it without running anything in it.

    Raises:
        InputError: a file that cannot be read, or one of another network.
    """
    checkpoint = read_checkpoint(path, weights_only)
    if is_ticket(checkpoint):
        weights = read_ticket(checkpoint, f"ckpt_path={path!r}").state_dict
    else:
        weights = {
            key.removeprefix(prefix).replace("_orig_mod.", ""): value
            for key, value in checkpoint["state_dict"].items()
            if key.startswith(prefix)
        }
    check_weights(network.state_dict(), weights, type(network).__name__, checkpoint, path)
    network.load_state_dict(weights)


def image_shape(config: Namespace, network: nn.Module) -> tuple[int, ...]:
    """The shape (C, H, W) that the user gives, or the data section promises; the data itself need not exist.

    Args:
        config: what a parser with `add_network_arguments` has read.
        network: what `build_network` has built.

    Raises:
        InputError: it is malformed, or not to be known.
    """
    if config.image_shape is not None:
        sizes = re.fullmatch(r"[\[(]?\s*(\d+)\s*[,x]\s*(\d+)\s*[,x]\s*(\d+)\s*[\])]?", config.image_shape)
        if sizes is None:
            raise InputError(f"image_shape={config.image_shape!r} must be three integers, such as 3,32,32.")
        return tuple(map(int, sizes.groups()))
    data = config.get("data")
    if data is None:
        raise InputError("image_shape is not given, and there is no data section to say it; add --image_shape=C,H,W.")
    module, _, name = data.class_path.rpartition(".")
    shape = getattr(getattr(importlib.import_module(module), name), "image_shape", None)
    if isinstance(shape, (tuple, list)):
        return tuple(shape)
    size = data.get("init_args", Namespace()).get("image_size")
    channels = getattr(network, "in_channels", None)
    if isinstance(size, int) and isinstance(channels, int):
        return channels, size, size
    raise InputError(f"image_shape is not given, and {name} does not say it; add --image_shape=C,H,W.")
