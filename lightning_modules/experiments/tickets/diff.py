"""`bnfree ticket diff`: what two tickets have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bnfree.errors import InputError
from bnfree.lightning_modules.experiments.tickets.arguments import Parser
from bnfree.lightning_modules.experiments.tickets.pruned_network import PrunedNetwork, read_pruned_network
from bnfree.lightning_modules.reports.cost_table import short
from bnfree.lightning_modules.training.checkpoints import differences
from bnfree.text_tables import fields, table
from bnfree.tickets import Masks, overlap
from bnfree.tickets.statistics import MaskOverlap

DESCRIPTION = """\
Compares two tickets, or checkpoints of pruned networks, layer by layer:

  kept A, kept B    density of each
  Jaccard           survivors of both over survivors of either: 1 the same mask
  chance            what it would be if each mask were shuffled within its layers
  Hamming           share of the weights whose fate differs
  signs             share of the common survivors whose starting weight has another sign in B than in A

A Jaccard index at its chance level says that two masks agree in their layers' densities and in nothing else. Layers
that only one of the two has, or that have another shape there, are left out and named."""
EXAMPLES = """\
  bnfree ticket diff seed_0/level_03/ticket.pt seed_1/level_03/ticket.pt
  bnfree ticket diff ticket.pt runs/finetuned/checkpoints/last.ckpt"""
TITLES = ("layer", "weights", "kept A", "kept B", "both", "Jaccard", "chance", "Hamming", "signs")
FOUND = ("score", "scope", "density", "level", "source")


def run(arguments: Sequence[str]) -> int:
    """Prints what two tickets have in common.

    Args:
        arguments: `diff` and its options.

    Raises:
        InputError: no ticket, or two without a common layer.
    """
    parser = Parser("diff", DESCRIPTION, EXAMPLES)
    parser.add_argument("first", metavar="A", help="ticket file, or checkpoint of a pruned network")
    parser.add_argument("second", metavar="B", help="another one")
    options = parser.parse_args(arguments[1:])
    first, second = read_pruned_network(options.first, "A"), read_pruned_network(options.second, "B")
    one, two = first.masks, second.masks
    common = [name for name, mask in one.items() if name in two and two[name].shape == mask.shape]
    if not common:
        raise InputError(
            f"A={options.first!r} and B={options.second!r} have no pruned layer of the same name and shape; give "
            "tickets of the same architecture and width."
        )
    print(fields([("A", options.first), ("B", options.second)]), end="\n\n")
    rows = [_row(name, {name: one[name]}, {name: two[name]}, first, second) for name in common]
    ours, theirs = ({name: masks[name] for name in common} for masks in (one, two))
    print(table(TITLES, rows, _row("all", ours, theirs, first, second)))
    print()
    print(fields([*_left_out(one, two, common), ("masks", _verdict(overlap(ours, theirs), len(one), len(two), common)),
                  ("weights", _weights(first.start, second.start)), *_notes(first, second)]))  # fmt: skip
    return 0


def _row(name: str, one: Masks, two: Masks, first: PrunedNetwork, second: PrunedNetwork) -> tuple[str, ...]:
    found = overlap(one, two)
    flipped, compared = _flips(one, two, first.start, second.start)
    return (
        name, short(found.weights), f"{found.first / found.weights:.4f}", f"{found.second / found.weights:.4f}",
        short(found.both), f"{found.jaccard:.3f}", f"{found.chance_jaccard:.3f}", f"{found.hamming:.4f}",
        f"{flipped / compared:.3f}" if compared else "-",
    )  # fmt: skip


def _flips(one: Masks, two: Masks, first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> tuple[int, int]:
    """How many common survivors start with another sign, and how many there are."""
    flipped = compared = 0
    for name, mask in one.items():
        both = mask & two[name]
        signs = [weights[f"{name}.weight"][both] >= 0 for weights in (first, second)]
        flipped, compared = flipped + int((signs[0] != signs[1]).sum()), compared + int(both.sum())
    return flipped, compared


def _left_out(one: Masks, two: Masks, common: Sequence[str]) -> Iterator[tuple[str, str]]:
    for where, masks in (("only in A", one), ("only in B", two)):
        names = [name for name in masks if name not in common]
        if names:
            yield where, ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _verdict(found: MaskOverlap, first: int, second: int, common: Sequence[str]) -> str:
    if found.both == found.first == found.second:
        return "the same" if first == second == len(common) else f"the same in the {len(common)} common layers"
    smaller = "A" if found.first <= found.second else "B"
    larger = "B" if smaller == "A" else "A"
    if found.both == min(found.first, found.second):
        return f"{smaller} is a part of {larger}: all of its {found.both} survivors survive there too"
    above = (found.jaccard - found.chance_jaccard) / (1 - found.chance_jaccard) if found.chance_jaccard < 1 else 0.0
    return (
        f"{found.intersection:.1%} of {smaller}'s survivors survive in {larger}; on the way from chance to equality "
        f"the Jaccard index is at {above:.1%}"
    )


def _weights(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> str:
    """How far the weights that training starts from are the same."""
    names = [n for n in first if n in second and first[n].shape == second[n].shape and not n.endswith(".mask")]
    differing = [name for name in names if not torch.equal(first[name], second[name])]
    if not differing:
        return f"training starts from the same weights, bit for bit ({len(names)} tensors)"
    return (
        f"training starts from other weights: {len(differing)} of {len(names)} tensors differ, first {differing[0]!r}"
    )


def _notes(first: PrunedNetwork, second: PrunedNetwork) -> Iterator[tuple[str, str]]:
    """What else is noted differently."""
    for which, pruned in (("A", first), ("B", second)):
        if pruned.ticket is None:
            yield "notes", f"{which} is a checkpoint, which says nothing about how its masks were found"
            return
    a, b = first.ticket, second.ticket
    for name in FOUND:
        if getattr(a, name) != getattr(b, name):
            yield name, f"{getattr(a, name)!r} in A, {getattr(b, name)!r} in B"
    ours, theirs = (pruned.ticket.details if pruned.ticket else {} for pruned in (first, second))
    for name in dict.fromkeys((*ours, *theirs)):
        if ours.get(name) != theirs.get(name):
            yield name, f"{_brief(ours, name)} in A, {_brief(theirs, name)} in B"
    for section in ("model", "data"):
        for line in differences(first.sections.get(section, {}), second.sections.get(section, {}), section):
            yield "config", f"{line.removesuffix(')').replace(' (the checkpoint was written with ', ' in B, ')} in A"


def _brief(details: Mapping[str, Any], name: str) -> str:
    if name not in details:
        return "nothing"
    text = str(details[name])
    return text if len(text) <= 60 else text[:57] + "..."
