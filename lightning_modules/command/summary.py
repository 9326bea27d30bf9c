"""`bnfree summary`: what the network of a config, of a run or of a checkpoint costs."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import sys
from argparse import SUPPRESS
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, Namespace
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import nn

from bnfree.costs import NetworkCost, count_ops
from bnfree.errors import InputError
from bnfree.tickets import is_ticket, read_ticket
from lightning_modules.command import training as _short_names  # noqa: F401
from lightning_modules.command.arguments import complete_arguments
from lightning_modules.command.checkpoints import check_weights, read_checkpoint
from lightning_modules.command.cost_table import LEGEND, cost_table, cost_totals
from lightning_modules.command.explanations import explain, first_cause
from lightning_modules.command.parser import CommandParser, ParseFailure, add_arguments
from lightning_modules.command.quiet import quieten
from lightning_modules.command.run_directory import CHECKPOINTS, CONFIG, latest_config

FLAGS = ("--json", "--help", "-h", "--print_config")
SOURCE = "a YAML config, a run directory or a checkpoint"
DESCRIPTION = f"""Counts the operations, parameters and stored bits of each layer of a network. CONFIG|RUN|CHECKPOINT is
{SOURCE}; of a run directory it is the last checkpoint, with its pruning masks. Options of the model beat it, such as
--model.backbone.width=16. Only the network is built: no data, no trainer, no run directory. What is counted, and how:
the docstring of bnfree.costs."""


def run(arguments: Sequence[str]) -> None:
    """Prints the costs of a network.

    Args:
        arguments: subcommand, source and options.

    Raises:
        InputError: a mistake in what the user gave.
    """
    quieten(arguments[0])
    # A console script does not find the modules of the directory it is called from, where the user's own classes are.
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    arguments = complete_arguments([arguments[0], *_source_as_options(arguments[1:])])
    parser = _parser()
    try:
        config = parser.parse_args(arguments[1:])
    except ParseFailure as failure:
        raise InputError(explain(failure.message, arguments, {arguments[0]: parser})) from None
    network, prefix = _build(config)
    if config.ckpt_path is not None:
        _load(network, prefix, config.ckpt_path, config.weights_only is not False)
    cost = count_ops(network, _image_shape(config, network))
    name = type(network).__name__
    if config.json:
        print(json.dumps(_as_dict(cost, name, config.ckpt_path), indent=2))
        return
    print(f"{name}, images {'x'.join(map(str, cost.image_shape))} ({LEGEND})")
    if config.ckpt_path is not None:
        print(f"Weights of {config.ckpt_path}")
    print(f"\n{cost_table(cost)}\n\n{cost_totals(cost)}")


def _source_as_options(arguments: Sequence[str]) -> list[str]:
    """Puts the options that a source stands for in its place."""
    for i, argument in enumerate(arguments):
        previous = arguments[i - 1] if i else ""
        takes_value = previous.startswith("-") and "=" not in previous and previous not in FLAGS
        if not argument.startswith("-") and not takes_value:
            return [*_options_of(argument), *arguments[:i], *arguments[i + 1 :]]
    names = {argument.partition("=")[0] for argument in arguments}
    asks = any(name.endswith(".help") for name in names)
    if not asks and not names & {"--config", "-c", "--ckpt_path", "--model", "--help", "-h"}:
        raise InputError(f"the network is not given; name {SOURCE}: bnfree summary configs/quickstart.yaml.")
    return list(arguments)


def _options_of(source: str) -> list[str]:
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / CONFIG).is_file():
            raise InputError(f"{source!r} is a directory without {CONFIG}, not of a run; give {SOURCE}.")
        last = path / CHECKPOINTS / "last.ckpt"
        return ["--ckpt_path", str(last)] if last.is_file() else ["--config", str(latest_config(path))]
    if path.suffix in (".yaml", ".yml", ".json"):
        return ["--config", str(path)]
    if not path.exists() and not path.suffix:
        raise InputError(f"{source!r} does not exist; give {SOURCE}.")
    return ["--ckpt_path", str(path)]


def _parser() -> CommandParser:
    """A parser that accepts every key of the config of a fit, and shows those that a summary needs."""
    parser = CommandParser(
        prog="bnfree summary",
        usage="bnfree summary CONFIG|RUN|CHECKPOINT [options]",
        description=DESCRIPTION,
        allow_abbrev=False,
    )
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="Another YAML config on top of the first.")
    parser.add_argument(
        "--image_shape",
        type=str | None,
        default=None,
        help="C,H,W of the images to count for; by default those of the data section, which are not looked for.",
    )
    parser.add_argument("--json", action="store_true", help="Print JSON, with plain numbers, in place of the table.")
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    shown = {id(action) for action in parser._actions}
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True, required=False)
    parser.add_argument("--seed_everything", type=bool | int, default=0)
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_method_arguments(Trainer, "fit", skip={"model", "train_dataloaders", "val_dataloaders", "datamodule"})
    add_arguments(parser)
    for action in parser._actions:
        if id(action) not in shown:
            action.help = SUPPRESS
    return parser


def _build(config: Namespace) -> tuple[nn.Module, str]:
    """The network, and what its weights' names begin with in a checkpoint.

    A backbone is built alone: the module around it may want files that a count has no use for.
    """
    parser = CommandParser()
    backbone = config.model.get("init_args", Namespace()).get("backbone")
    alone = isinstance(backbone, Namespace) and "class_path" in backbone
    parser.add_subclass_arguments(nn.Module if alone else LightningModule, "network")
    try:
        built = parser.instantiate_classes(Namespace(network=backbone if alone else config.model)).network
    except ValueError as error:
        raise first_cause(error) from None
    if alone or not isinstance(getattr(built, "backbone", None), nn.Module):
        return built, "backbone." if alone else ""
    return built.backbone, "backbone."


def _load(network: nn.Module, prefix: str, path: str, weights_only: bool) -> None:
    """Loads weights and masks of a checkpoint, or of a ticket file, whose names are those of the network alone."""
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


def _image_shape(config: Namespace, network: nn.Module) -> tuple[int, ...]:
    """The shape that the user gives, or the data section promises; the data itself need not exist.

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


def _as_dict(cost: NetworkCost, network: str, checkpoint: str | None) -> dict[str, Any]:
    totals = (
        "bops", "bops_on_real_input", "flops", "ops", "binary_params", "real_params", "density", "bytes_packed",
        "bytes_float32",
    )  # fmt: skip
    return {
        "network": network,
        "checkpoint": checkpoint,
        "image_shape": list(cost.image_shape),
        "totals": {name: getattr(cost, name) for name in totals},
        "layers": [{**dataclasses.asdict(row), "ops": row.ops} for row in cost.rows],
        "uncounted": list(cost.uncounted),
    }
