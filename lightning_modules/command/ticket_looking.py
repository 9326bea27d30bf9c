"""`bnfree ticket info` and `diff`: their manuals, and what they print."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from bnfree.lightning_modules.command.parsing import ActionParser
from bnfree.lightning_modules.experiments.tickets.looking import ALL, TicketDiff, TicketInfo, ticket_diff, ticket_info
from bnfree.lightning_modules.experiments.tickets.pruned_network import PrunedNetwork
from bnfree.lightning_modules.training.checkpoints import differences
from bnfree.text_tables import fields, short_count, table
from bnfree.tickets import LayerDensity, MaskOverlap, Ticket, checksum

INFO_MANUAL = """\
Says what a ticket is: its network, how its masks were found, what its training starts from, which tickets it was made
of, who has signed it; and for each pruned layer

  kept, density     survivors, and their share of the weights
  zeros             weights that are 0 where it counts, in the weight that the convolution uses, counted in the network
  empty             filters without a survivor
  occupied          share of the kernels (kH x kW weights between one input channel and one filter) with a survivor;
                    owners' marks lie there (bnfree ticket sign)
  stored            bits of masks and signs under a perfect entropy coder; a dense binary layer takes 1 bit a weight

TICKET is a ticket file, a checkpoint of a pruned network, or a directory with one of them."""
INFO_EXAMPLES = """\
  bnfree ticket info ticket.pt
  bnfree ticket info runs/digits_lottery/seed_0/level_03"""
INFO_TITLES = ("layer", "shape", "weights", "kept", "density", "zeros", "empty", "occupied", "stored", "bits/w")
DIFF_MANUAL = """\
Compares two tickets, or checkpoints of pruned networks, layer by layer:

  kept A, kept B    density of each
  Jaccard           survivors of both over survivors of either: 1 the same mask
  chance            what it would be if each mask were shuffled within its layers
  Hamming           share of the weights whose fate differs
  signs             share of the common survivors whose starting weight has another sign in B than in A

A Jaccard index at its chance level says that two masks agree in their layers' densities and in nothing else. Layers
that only one of the two has, or that have another shape there, are left out and named."""
DIFF_EXAMPLES = """\
  bnfree ticket diff seed_0/level_03/ticket.pt seed_1/level_03/ticket.pt
  bnfree ticket diff ticket.pt runs/finetuned/checkpoints/last.ckpt"""
DIFF_TITLES = ("layer", "weights", "kept A", "kept B", "both", "Jaccard", "chance", "Hamming", "signs")
# Below this density masks and signs take less than the 1 bit a weight of a dense binary layer: H(d) + d = 1.
SMALLER_BELOW = 0.227
FOUND = ("score", "scope", "density", "level", "source")
# What a ticket's `details` hold that is shown in words of its own.
TOLD = ("elastic", "transfer", "ownership", "earlier_ownership", "unscaled_shifts", "carried", "locked")


def run_info(arguments: Sequence[str]) -> int:
    """Prints what a ticket is.

    Args:
        arguments: `info` and its options.
    """
    parser = ActionParser("bnfree ticket info", INFO_MANUAL, INFO_EXAMPLES)
    parser.add_argument("ticket", metavar="TICKET", help="ticket file, or checkpoint of a pruned network")
    info = ticket_info(parser.parse_args(arguments[1:]).ticket)
    zeros = [] if info.why_no_zeros is None else [("zeros", info.why_no_zeros)]
    print(fields([*_origin(info.pruned), *zeros]))
    rows = [_layer_row(layer, info) for layer in (*info.statistics.layers, info.statistics.total)]
    print(f"\n{table(INFO_TITLES, rows[:-1], rows[-1], left=2)}\n\n{_storage(info)}")
    return 0


def _layer_row(layer: LayerDensity, info: TicketInfo) -> tuple[str, ...]:
    masks, zeros = info.pruned.masks, info.zeros
    return (
        layer.name, "x".join(map(str, masks[layer.name].shape)) if layer.name in masks else "",
        short_count(layer.weights), str(layer.kept), f"{layer.density:.4f}",
        "?" if zeros is None else str(zeros.get(layer.name, "?")), str(layer.empty_filters),
        f"{info.occupied[layer.name]:.3f}", short_count(layer.bits_per_weight * layer.weights),
        f"{layer.bits_per_weight:.2f}",
    )  # fmt: skip


def _storage(info: TicketInfo) -> str:
    """What the masks cost and save, in sentences."""
    weights, density = info.statistics.total.weights, info.statistics.total.density
    ratio = weights / max(info.stored_bits, 1)
    verdict = (
        f"{ratio:.2f} times smaller" if ratio > 1 else f"{1 / ratio:.2f} times larger" if ratio else "nothing left"
    )
    text = (
        f"{short_count(info.stored_bits)} bits entropy-coded (mask and signs), {short_count(weights * (1 + density))} "
        f"bits as a raw mask and signs, against {short_count(weights)} bits of dense binary layers: {verdict}. Only "
        f"below density {SMALLER_BELOW} is a pruned binary layer smaller than a dense one."
    )
    return fields([("Storage", text), ("Speed", "zeros at these places save no time by themselves.")])


def _origin(pruned: PrunedNetwork) -> list[tuple[str, str]]:
    """Where a ticket or a checkpoint comes from: names and texts."""
    masks = pruned.masks
    density = sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
    found = [("file", pruned.path), ("network", _network_text(pruned.sections))]
    if "data" in pruned.sections:
        found.append(("data", pruned.sections["data"]["class_path"].rpartition(".")[2]))
    if pruned.ticket is None:
        return [*found, ("kind", f"checkpoint of a pruned network, density {density:.5g}"),
                ("masks", f"sha256 {checksum(masks)}")]  # fmt: skip
    ticket = pruned.ticket
    found += [
        ("found by", f"score {ticket.score}, scope {ticket.scope}, level {ticket.level}"),
        ("density", f"{density:.5g} (asked for: {ticket.density:.5g})"),
        ("source", ticket.source or "not noted"),
        ("starts from", _start_text(ticket)),
        *_history(ticket.details),
    ]
    found += [(name, str(value)) for name, value in ticket.details.items() if name not in TOLD]
    return [*found, ("masks", f"sha256 {ticket.checksum}")]


def _network_text(sections: Mapping[str, Any]) -> str:
    """Class and arguments of the backbone; those that are null or at their usual setting `False` are left out."""
    model = sections.get("model", {})
    backbone = model.get("init_args", {}).get("backbone")
    if not isinstance(backbone, Mapping) or "class_path" not in backbone:
        return str(model.get("class_path", "not noted; give a config wherever one is needed"))
    shown = {k: v for k, v in backbone.get("init_args", {}).items() if v is not None and v is not False}
    arguments = ", ".join(f"{name}={value}".replace(", ", ",") for name, value in shown.items())
    return f"{backbone['class_path'].rpartition('.')[2]}({arguments})"


def _start_text(ticket: Ticket) -> str:
    """What the training of a ticket starts from."""
    if ticket.rewind is None:
        return "none: training goes on from the weights that the masks were found with"
    start = ticket.start()
    if all(torch.equal(start[name], value) for name, value in ticket.state_dict.items()):
        return "the weights of the ticket themselves: none have been trained under these masks"
    weights = {name: tensor for name, tensor in start.items() if not name.endswith(".mask")}
    changed = sum(not torch.equal(tensor, ticket.state_dict[name]) for name, tensor in weights.items())
    return (
        f"weights of an earlier moment; {changed} of {len(ticket.rewind)} tensors differ from those it was found with"
    )


def _history(details: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """How a ticket was made of others, and who has signed it."""
    for step in details.get("elastic", []):
        before, after = (",".join(map(str, step[which])) for which in ("from", "to"))
        depths = f"blocks {before} -> {after}, mapping {step['mapping']}"
        yield "elastic", f"{depths}, from masks {step['source_checksum'][:12]}"
    for step in details.get("transfer", []):
        yield "transfer", f"drawn fresh: {', '.join(step['fresh'])}; from masks {step['source_checksum'][:12]}"
    if "carried" in details:
        yield "carried", str(details["carried"])
    for mark in [*details.get("earlier_ownership", []), *([details["ownership"]] if "ownership" in details else [])]:
        bits = sum(count for *_, count in mark["layers"].values())
        when = mark["created"] or "an unknown day"
        words = f"{bits} bits in {len(mark['layers'])} layers, key id {mark['key_id']}, on {when}"
        yield "signed", f"{words}, message {mark['message']!r}"
        yield "commitment", mark["commitment"]
    if "locked" in details:
        locked = details["locked"]
        yield "locked", f"{locked['weights']} survivors are in the key {locked['id']}: bnfree ticket key join"


def run_diff(arguments: Sequence[str]) -> int:
    """Prints what two tickets have in common.

    Args:
        arguments: `diff` and its options.
    """
    parser = ActionParser("bnfree ticket diff", DIFF_MANUAL, DIFF_EXAMPLES)
    parser.add_argument("first", metavar="A", help="ticket file, or checkpoint of a pruned network")
    parser.add_argument("second", metavar="B", help="another one")
    options = parser.parse_args(arguments[1:])
    diff = ticket_diff(options.first, options.second)
    print(fields([("A", options.first), ("B", options.second)]), end="\n\n")
    rows = [_overlap_row(name, found, diff.flips[name]) for name, found in diff.layers.items()]
    print(table(DIFF_TITLES, rows, _overlap_row(ALL, diff.total, diff.flips[ALL])), end="\n\n")
    print(fields([*_left_out(diff), ("masks", _verdict(diff)), ("weights", _weights(diff)), *_notes(diff)]))
    return 0


def _overlap_row(name: str, found: MaskOverlap, flips: tuple[int, int]) -> tuple[str, ...]:
    flipped, compared = flips
    return (
        name, short_count(found.weights), f"{found.first / found.weights:.4f}", f"{found.second / found.weights:.4f}",
        short_count(found.both), f"{found.jaccard:.3f}", f"{found.chance_jaccard:.3f}", f"{found.hamming:.4f}",
        f"{flipped / compared:.3f}" if compared else "-",
    )  # fmt: skip


def _left_out(diff: TicketDiff) -> Iterator[tuple[str, str]]:
    for side, names in diff.only_in.items():
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            yield f"only in {side}", ", ".join(names[:4]) + more


def _verdict(diff: TicketDiff) -> str:
    found = diff.total
    if found.both == found.first == found.second:
        same = not any(diff.only_in.values())
        return "the same" if same else f"the same in the {len(diff.layers)} common layers"
    smaller, larger = ("A", "B") if found.first <= found.second else ("B", "A")
    if found.both == min(found.first, found.second):
        return f"{smaller} is a part of {larger}: all of its {found.both} survivors survive there too"
    above = (found.jaccard - found.chance_jaccard) / (1 - found.chance_jaccard) if found.chance_jaccard < 1 else 0.0
    return (
        f"{found.intersection:.1%} of {smaller}'s survivors survive in {larger}; on the way from chance to equality "
        f"the Jaccard index is at {above:.1%}"
    )


def _weights(diff: TicketDiff) -> str:
    """How far the weights that training starts from are the same."""
    if not diff.differing:
        return f"training starts from the same weights, bit for bit ({len(diff.weights)} tensors)"
    numbers = f"{len(diff.differing)} of {len(diff.weights)} tensors differ"
    return f"training starts from other weights: {numbers}, first {diff.differing[0]!r}"


def _notes(diff: TicketDiff) -> Iterator[tuple[str, str]]:
    """What else is noted differently."""
    a, b = diff.first.ticket, diff.second.ticket
    if a is None or b is None:
        side = "A" if a is None else "B"
        yield "notes", f"{side} is a checkpoint, which says nothing about how its masks were found"
        return
    for name in FOUND:
        if getattr(a, name) != getattr(b, name):
            yield name, f"{getattr(a, name)!r} in A, {getattr(b, name)!r} in B"
    for name in dict.fromkeys((*a.details, *b.details)):
        if a.details.get(name) != b.details.get(name):
            yield name, f"{_brief(a.details, name)} in A, {_brief(b.details, name)} in B"
    for section in ("model", "data"):
        for line in differences(diff.first.sections.get(section, {}), diff.second.sections.get(section, {}), section):
            yield "config", f"{line.removesuffix(')').replace(' (the checkpoint was written with ', ' in B, ')} in A"


def _brief(details: Mapping[str, Any], name: str) -> str:
    if name not in details:
        return "nothing"
    text = str(details[name])
    return text if len(text) <= 60 else text[:57] + "..."
