"""`bnfree ticket stretch`, `squeeze` and `transfer`: their manuals, their options, and what they print."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from typing import Any

from bnfree.errors import InputError
from bnfree.lightning_modules.command.parsing import UNKNOWN, ActionParser, add_output
from bnfree.lightning_modules.experiments.tickets.changing import (
    ElasticSettings,
    TransferredPart,
    TransferSettings,
    squeeze_ticket_file,
    stretch_ticket_file,
    transfer_ticket_file,
)
from bnfree.text_tables import fields, short_count, table

HOW = """\
Whole residual blocks are {moved}, with masks, weights, gains and shifts; the first block of each stage, stem and
classifier go over one to one. Stages are those of a ReActNet-18 (--blocks_per_stage), or the equal blocks of a
ReActNet-A (--repeated_blocks), whose first block is the one before them. Nothing is trained.

beta belongs to a place in the network and not to a block: it is that of the new network, in this order: of the
checkpoint or ticket given as --to; the one that the ticket had when it was as deep; measured with --calibrate; the
analytic one of a fresh network. The shifts of the signs are scaled with it, so that every block keeps its thresholds.

A mapping says which block goes where: 0:0;1:1,3;2:2,4 puts block 1 of a stage to the places 1 and 3. One serves all
stages, or one for each, joined by |. Every place must be filled once, and 0:0 is part of every mapping."""
STRETCH_MANUAL = f"""\
Makes a ticket for a deeper network.

{HOW.format(moved="copied")}

Squeezed back in the same order, the ticket is the same again, bit for bit."""
STRETCH_EXAMPLES = """\
  bnfree ticket stretch ticket.pt --blocks_per_stage 6,6,6,6 --output deeper.pt
  bnfree ticket stretch ticket.pt --blocks_per_stage 6,6,6,6 --mapping "0:0;1:1,4;2:2,5;3:3" --output deeper.pt
  bnfree ticket stretch reactnet_a.pt --repeated_blocks 8 --order interpolate --output deeper.pt
  bnfree ticket stretch ticket.pt --to configs/deep.yaml --calibrate --output deeper.pt
  bnfree fit --config CONFIG --model.backbone.blocks_per_stage=[6,6,6,6] --model.init_from=deeper.pt"""
SQUEEZE_MANUAL = f"""\
Makes a ticket for a shallower network; undoes stretch in the same order.

{HOW.format(moved="dropped")}"""
SQUEEZE_EXAMPLES = """\
  bnfree ticket squeeze ticket.pt --blocks_per_stage 2,2,2,2 --output shallow.pt
  bnfree ticket squeeze deeper.pt --to ticket.pt --output back.pt"""
TRANSFER_MANUAL = """\
Makes a ticket for another data set: other classes, other image channels, another stem.

A part of the network (stem, body, classifier) is carried over whole or drawn fresh whole. Carried over is what has the
same shapes, with masks, weights and betas. Drawn fresh is the classifier, always, since the same number of classes are
not the same classes (--keep_classifier: they are), and a part without masks whose shapes differ, such as the stem for
other image channels. Depth, width and normalisation must agree; stretch or squeeze first where the depth differs.

The report says what happened to each part. A run that starts from a ticket does not calibrate: --calibrate measures the
betas on images of the new data."""
TRANSFER_EXAMPLES = """\
  bnfree ticket transfer cifar10.pt --to configs/cifar100_step2.yaml --output cifar100.pt
  bnfree ticket transfer digits.pt --to configs/fashion_mnist.yaml --model.backbone.width=16 --calibrate --output f.pt
  bnfree fit --config configs/cifar100_step2.yaml --model.init_from=cifar100.pt"""
COPY = {
    "both": "masks and weights",
    "signs": "masks, and the signs of the weights that survive; their magnitudes are one for each layer",
    "mask": "masks alone; all weights are drawn fresh",
}


def run_stretch(arguments: Sequence[str]) -> int:
    """Writes a ticket for a deeper network.

    Args:
        arguments: `stretch` and its options.
    """
    return _run_elastic(ActionParser("bnfree ticket stretch", STRETCH_MANUAL, STRETCH_EXAMPLES), arguments)


def run_squeeze(arguments: Sequence[str]) -> int:
    """Writes a ticket for a shallower network.

    Args:
        arguments: `squeeze` and its options.
    """
    return _run_elastic(ActionParser("bnfree ticket squeeze", SQUEEZE_MANUAL, SQUEEZE_EXAMPLES), arguments)


def _run_elastic(parser: ActionParser, arguments: Sequence[str]) -> int:
    parser.add_argument("ticket", metavar="TICKET", help="ticket file")
    parser.add_argument("--blocks_per_stage", metavar="N,N,N,N", help="depth of a ReActNet-18, such as 6,6,6,6")
    parser.add_argument("--repeated_blocks", metavar="N", type=int, help="number of equal blocks of a ReActNet-A")
    parser.add_argument(
        "--order",
        choices=("append", "interpolate"),
        default="append",
        help="blocks 1 2 become 1 2 1 2 (append, the default) or 1 1 2 2 (interpolate); squeezing undoes the same",
    )
    parser.add_argument("--mapping", metavar="TEXT", help="in place of --order which block goes where, see above")
    _add_copy(parser)
    parser.add_argument(
        "--keep_shifts", action="store_true", help="do not scale the shifts: keep them in place of the thresholds"
    )
    _add_target(parser)
    add_output(parser)
    options = _with_network(parser, arguments[1:])
    options["blocks_per_stage"] = _numbers(options["blocks_per_stage"])
    settings = ElasticSettings(**options)
    found = (stretch_ticket_file if arguments[0] == "stretch" else squeeze_ticket_file)(settings)
    depths, before, after = (",".join(map(str, found.step[end])) for end in ("from", "to")), found.before, found.after
    rows = [
        ("ticket", str(settings.ticket)),
        ("blocks", " -> ".join(depths)),
        ("mapping", f'"{found.step["mapping"]}"'),
        ("survivors", f"{before.kept} of {before.weights} (density {before.density:.4f}) -> {after.kept} of "
                      f"{after.weights} ({after.density:.4f})"),
        ("carried", COPY[settings.copy]),
    ]  # fmt: skip
    if found.betas is not None:
        rows += [("beta", found.betas), ("shifts", "as they were" if settings.keep_shifts else "scaled with beta")]
    print(fields([*rows, ("written", str(found.path))]))
    return 0


def run_transfer(arguments: Sequence[str]) -> int:
    """Writes a ticket for another data set, and prints what happened to each part of the network.

    Args:
        arguments: `transfer` and its options.
    """
    parser = ActionParser("bnfree ticket transfer", TRANSFER_MANUAL, TRANSFER_EXAMPLES)
    parser.add_argument("ticket", metavar="TICKET", help="ticket file")
    parser.add_argument("--keep_classifier", action="store_true", help="carry the classifier over too")
    _add_copy(parser)
    _add_target(parser, required=True)
    add_output(parser)
    settings = TransferSettings(**_with_network(parser, arguments[1:]))
    found = transfer_ticket_file(settings)
    rows = [row for name, part in found.parts.items() for row in _part_rows(name, part)]
    print(table(("part", "fate", "tensors", "numbers", "masks"), rows, left=2))
    pairs = [("ticket", str(settings.ticket)), ("carried", COPY[settings.copy])]
    if found.betas is not None:
        pairs.append(("beta", found.betas))
    print("\n" + fields([*pairs, ("written", str(found.path))]))
    return 0


def _part_rows(name: str, part: TransferredPart) -> Iterator[tuple[str, ...]]:
    fate = "drawn fresh" if part.fresh else "carried over"
    yield name, fate, str(len(part.shapes)), short_count(part.numbers), str(part.masks)
    for tensor, (old, new) in part.shapes.items() if part.fresh else ():
        yield f"  {tensor}", f"{'nothing' if old is None else old} -> {new}", "", "", ""


def _add_copy(parser: ActionParser) -> None:
    parser.add_argument(
        "--copy",
        choices=list(COPY),
        default="both",
        help="what the new ticket takes along: masks and weights (both, the default), masks and signs, or the mask "
        "alone over fresh weights",
    )


def _add_target(parser: ActionParser, required: bool = False) -> None:
    parser.add_argument(
        "--to",
        metavar="CONFIG",
        required=required,
        help="the network that the new ticket is for: a config of bnfree fit, a run directory, a checkpoint or "
        "another ticket; options such as --model.backbone.width=32 beat it",
    )
    parser.add_argument("--seed", type=int, default=0, help="of whatever is drawn (default: 0)")
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="measure the new network's betas on 256 training images of the data section, as a run from scratch "
        "does before its first step and a run that starts from a ticket does not",
    )


def _with_network(parser: argparse.ArgumentParser, words: Sequence[str]) -> dict[str, Any]:
    """The options of an action by name; under `arguments` those of `bnfree fit` that say what the network is.

    Raises:
        InputError: an option that is neither.
    """
    options, others = parser.parse_known_args(words)
    for option in others:
        if not option.startswith(("--model.", "--data.", "--model=", "--data=")) or "=" not in option:
            like = option.startswith(("--model", "--data")) and "=" not in option
            parser.error(f"{option} needs its value after a =" if like else f"{UNKNOWN}{option}")
    return {**vars(options), "arguments": others}


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    if re.fullmatch(r"\[?\s*\d+(\s*,\s*\d+)*\s*\]?", text) is None:
        raise InputError(f"blocks_per_stage={text!r} must be four integers, such as 6,6,6,6.")
    return [int(number) for number in text.strip("[] ").split(",")]
