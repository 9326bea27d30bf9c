"""`bnfree summary`: its manual, its options, and its tables and JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from bnfree.costs import LayerCost, NetworkCost
from bnfree.errors import InputError
from bnfree.lightning_modules.reports.network_costs import SummaryResult, SummarySettings, summary
from bnfree.lightning_modules.training.config.parser import CommandParser
from bnfree.lightning_modules.training.config.sources import SOURCE, options_of, take_positionals
from bnfree.lightning_modules.training.network import add_network_arguments, parse
from bnfree.text_tables import columns, fields, short_count, table

DESCRIPTION = f"""Counts the operations, parameters and stored bits of each layer of a network. CONFIG|RUN|CHECKPOINT is
{SOURCE}; of a run directory it is the last checkpoint, with its pruning masks. Options of the model beat it, such as
--model.backbone.width=16. Only the network is built: no data, no trainer, no run directory. What is counted, and how:
the docstring of bnfree.costs."""
COST_WIDTH = 120
COST_TITLES = (
    ("layer", "kind", "input -> output", "kernel", "binary", "real", "BOPs", "FLOPs", "OPs", "density", "bits"),
    ("", "", "", "", "params", "params", "", "", "", "", ""),
)
LEGEND = "W1: weights of 1 bit, A1: input of 1 bit, 32: real"
MIB = 2**20


def run(arguments: Sequence[str]) -> None:
    """Prints the costs of a network.

    Args:
        arguments: subcommand, source and options.

    Raises:
        InputError: a mistake in what the user gave.
    """
    config = parse(_parser(), [arguments[0], *_source_as_options(arguments[1:])])
    found = summary(SummarySettings(config))
    if config.memory:
        print(memory_report(found, config.json))
        return
    if config.json:
        print(json.dumps(_cost_json(found), indent=2))
        return
    shape = "x".join(map(str, found.image_shape))
    cost = found.cost
    print(f"{found.name}, images {shape} ({LEGEND})")
    if found.checkpoint is not None:
        print(f"Weights of {found.checkpoint}")
    print(f"\n{_cost_table(cost)}\n\n{_totals(cost, found.file_size)}")


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


def _cost_json(found: SummaryResult) -> dict[str, Any]:
    cost = found.cost
    totals = (
        "bops", "bops_on_real_input", "flops", "ops", "binary_params", "real_params", "density", "bytes_packed",
        "bytes_float32",
    )  # fmt: skip
    return {
        "network": found.name,
        "checkpoint": found.checkpoint,
        "image_shape": list(cost.image_shape),
        "totals": {name: getattr(cost, name) for name in totals},
        "layers": [{**dataclasses.asdict(row), "ops": row.ops} for row in cost.rows],
        "uncounted": list(cost.uncounted),
    }


def memory_report(found: SummaryResult, as_json: bool) -> str:
    """What a training step keeps, layer by layer and in all, as a table in MiB.

    Args:
        found: the network.
        as_json: plain numbers of bytes in place of the table.
    """
    memory, sums = found.memory, [sum(sizes.values()) for sizes in (found.memory.per_image, found.memory.fixed)]
    layers = [(layer, size, memory.fixed[layer]) for layer, size in memory.per_image.items()]
    if as_json:
        keys = ("layer", "bytes_per_image", "bytes_fixed")
        report = {
            "network": found.name,
            "image_shape": list(found.image_shape),
            "totals": dict(zip(keys[1:], sums, strict=True)),
            "layers": [dict(zip(keys, layer, strict=True)) for layer in layers],
        }
        return json.dumps(report, indent=2)
    rows = [(name, *(f"{size / MIB:.4f}" if size else "-" for size in sizes)) for name, *sizes in layers]
    total = ("total", *(f"{size / MIB:.4f}" if size else "-" for size in sums))
    shape = "x".join(map(str, found.image_shape))
    heading = f"{found.name}, images {shape}: kept between forward and backward pass, in MiB"
    return f"{heading}\n\n{table(('layer', 'an image', 'any batch'), rows, total)}"


def _cost_table(cost: NetworkCost) -> str:
    """The layers, one a line of at most 120 characters, and a line of totals; long names are cut at their beginning."""
    total = ("total", "", "", "", *_figures(cost), short_count(sum(row.bits for row in cost.rows)))
    lines = columns([*COST_TITLES, *(_cost_row(row) for row in cost.rows), total], left=4, width=COST_WIDTH)
    rule = "-" * max(map(len, lines))
    return "\n".join([*lines[:2], rule, *lines[2:-1], rule, lines[-1]])


def _totals(cost: NetworkCost, file_size: int | None) -> str:
    """What the table adds up to, in sentences."""
    sums = f"{_power(cost.ops)} OPs = {_power(cost.bops)} BOPs / 64 + {_power(cost.flops)} FLOPs"
    rows = [("Operations", f"{sums}, one for each multiply-accumulate of a convolution or linear layer")]
    if cost.bops_on_real_input:
        strict = (cost.bops - cost.bops_on_real_input) / 64 + cost.flops + cost.bops_on_real_input
        real = f"{_power(cost.bops_on_real_input)} of the BOPs have a real input (W1A32)"
        rows.append(("", f"{real}; counted as FLOPs: {_power(strict)} OPs"))
    step1 = sum(row.flops for row in cost.rows if row.binary_input)
    if step1:
        rows.append(("", f"{_power(step1)} of the FLOPs have binary activations, but real weights (W32A1): step 1"))
    if cost.uncounted:
        more = f" and {len(cost.uncounted) - 2} more" if len(cost.uncounted) > 2 else ""
        rows.append(("", f"not counted: {', '.join(cost.uncounted[:2])}{more}"))
    ratio = cost.bytes_float32 / cost.bytes_packed if cost.bytes_packed else 1.0
    sizes = f"{_megabytes(cost.bytes_packed)} packed, {_megabytes(cost.bytes_float32)} in float32"
    size = file_size and (f"{file_size / 1e6:.2f} MB" if file_size >= 1e6 else f"{file_size / 1e3:.0f} kB")
    rows += [
        ("Storage", f"{sizes}: {ratio:.1f} times smaller"),
        (
            "",
            "binary weights 1 bit (2 where filters are pruned in part), weights of real layers 16 bits, "
            "other numbers 32 bits",
        ),
        *(
            [("", f"as a file of bnfree export, with real convolutions in 32 bits and a header: {size}")]
            if size
            else []
        ),
        ("Density", f"{cost.density:.4g} of the effective weights are not 0"),
    ]
    return fields(rows, width=12)


def _power(count: float) -> str:
    """A count as papers write it, such as 1.64e8."""
    if count < 1000:
        return f"{count:.3g}"
    mantissa, _, exponent = f"{count:.2e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def _cost_row(row: LayerCost) -> tuple[str, ...]:
    layer = row.kind != "other"
    kind = f"W{1 if row.binary_weights else 32}A{1 if row.binary_input else 32}" if layer else ""
    shapes = f"{_shape(row.input_shape)} -> {_shape(row.output_shape)}" if row.input_shape else "not used" * layer
    kernel = "linear" if row.kind == "linear" else _shape(row.kernel_size)
    if any(stride != 1 for stride in row.stride):
        kernel += f"/{row.stride[0] if len(set(row.stride)) == 1 else _shape(row.stride)}"
    return row.name, kind, shapes, kernel, *_figures(row), short_count(row.bits)


def _figures(cost: LayerCost | NetworkCost) -> tuple[str, ...]:
    counts = (cost.binary_params, cost.real_params, cost.bops, cost.flops, cost.ops)
    density = "" if isinstance(cost, LayerCost) and cost.kind == "other" else f"{cost.density:.3g}"
    return *(short_count(count) if count else "-" for count in counts), density


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.{2 if count >= 1e6 else 4}f} MB"


def _shape(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))
