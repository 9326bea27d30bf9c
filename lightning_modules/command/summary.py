"""`bnfree summary`: what the network of a config, of a run or of a checkpoint costs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from bnfree.costs import NetworkCost, count_ops
from bnfree.errors import InputError
from bnfree.lightning_modules.reports.cost_table import LEGEND, cost_table, cost_totals
from bnfree.lightning_modules.reports.memory_table import memory_report
from bnfree.lightning_modules.training.config.parser import CommandParser
from bnfree.lightning_modules.training.config.sources import SOURCE, options_of, take_positionals
from bnfree.lightning_modules.training.network import (
    add_network_arguments,
    build_network,
    image_shape,
    load_weights,
    parse,
)

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
    config = parse(_parser(), [arguments[0], *_source_as_options(arguments[1:])])
    network, prefix = build_network(config)
    if config.ckpt_path is not None:
        load_weights(network, prefix, config.ckpt_path, config.weights_only is not False)
    name, shape = type(network).__name__, image_shape(config, network)
    if config.memory:
        print(memory_report(network, name, shape, config.json))
        return
    cost = count_ops(network, shape)
    if config.json:
        print(json.dumps(_as_dict(cost, name, config.ckpt_path), indent=2))
        return
    print(f"{name}, images {'x'.join(map(str, cost.image_shape))} ({LEGEND})")
    if config.ckpt_path is not None:
        print(f"Weights of {config.ckpt_path}")
    print(f"\n{cost_table(cost)}\n\n{cost_totals(cost)}")


def _source_as_options(arguments: Sequence[str]) -> list[str]:
    """Puts the options that a source stands for in its place."""
    sources, rest = take_positionals(arguments, ["--json", "--memory"])
    if sources:
        return [*options_of(sources[0]), *rest, *sources[1:]]
    names = {argument.partition("=")[0] for argument in arguments}
    asks = any(name.endswith(".help") for name in names)
    if not asks and not names & {"--config", "-c", "--ckpt_path", "--model", "--help", "-h"}:
        raise InputError(f"the network is not given; name {SOURCE}: bnfree summary quickstart.")
    return list(arguments)


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="bnfree summary",
        usage="bnfree summary CONFIG|RUN|CHECKPOINT [options]",
        description=DESCRIPTION,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="Print JSON, with plain numbers, in place of the table.")
    parser.add_argument(
        "--memory",
        action="store_true",
        help="Print what a training step keeps of each image for the backward pass, by layer, in place of the costs.",
    )
    add_network_arguments(parser)
    return parser


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
