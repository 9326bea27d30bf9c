"""Elastic tickets: a ticket of one network becomes a ticket of a deeper or shallower one, without training.

Whole residual blocks are copied or dropped, with everything that belongs to them: masks, latent weights, gains, shifts,
slopes, batch norm's statistics. Stem, classifier and the first block of each stage are carried over one to one. No
weight is scaled or drawn anew.

Source: Chen et al., "The elastic lottery ticket hypothesis" (NeurIPS 2021, arXiv 2103.16547). Our own for networks
without batch norm: beta belongs to the place in the network and not to the block, so it is that of the target network;
and a sign(beta * x + shift) keeps its threshold at its new place, since its shift is scaled by the ratio of the betas.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bnfree.backbones.residual import BlockNames
from bnfree.errors import InputError
from bnfree.tickets.mapping import Order, default_sources, format_mapping, parse_mapping
from bnfree.tickets.rewinding import Snapshot, take_snapshot
from bnfree.tickets.ticket_file import Ticket


def stretch(
    ticket: Ticket,
    target: nn.Module,
    order: Order = "append",
    mapping: str | None = None,
    rescale_shifts: bool = True,
) -> Ticket:
    """The ticket for a deeper network, whose additional blocks are copies.

    The density changes a little where blocks are not all copied equally often. An owner's mark that `sign` has put into
    the masks is copied along with them, and is found in the blocks that keep their place.

    Args:
        ticket: a ticket of a `ReActNet18` or `ReActNetA`.
        target: the deeper network, of the same kind, width, stem, normalisation and number of classes. Only its betas
            are used: if the ticket's network was calibrated, calibrate this one too.
        order: B1 B2 becomes B1 B2 B1 B2 (`append`) or B1 B1 B2 B2 (`interpolate`).
        mapping: in place of `order` which block goes where, such as `0:0;1:1,3;2:2,4`, see `bnfree.tickets.mapping`.
        rescale_shifts: keep the thresholds -shift / beta of the RSign layers rather than their shifts.

    Returns:
        A new ticket; its `details["elastic"]` lists every transformation so far: depths, mapping, and of what it
        started from the checksum of the masks and the betas (see `known_betas`). Squeezed back into a network with the
        betas of `ticket`, it has the tensors of `ticket` bit for bit; `details["unscaled_shifts"]` holds the shifts
        that rounding would have changed.

    Raises:
        InputError: a network of another kind or size, one that is shallower somewhere, or a mapping that does not fit.
    """
    return _transform(ticket, target, order, mapping, rescale_shifts, deeper=True)


def squeeze(
    ticket: Ticket,
    target: nn.Module,
    order: Order = "append",
    mapping: str | None = None,
    rescale_shifts: bool = True,
) -> Ticket:
    """The ticket for a shallower network, in which blocks are missing; undoes `stretch` in the same order.

    Args:
        ticket: as in `stretch`.
        target: the shallower network, as in `stretch`.
        order: keep the first blocks of each stage (`append`), or blocks at regular distances (`interpolate`).
        mapping: in place of `order` which block goes where, as in `stretch`; blocks that it does not name are dropped.
        rescale_shifts: as in `stretch`.

    Returns:
        A new ticket, as in `stretch`.

    Raises:
        InputError: a network of another kind or size, one that is deeper somewhere, or a mapping that does not fit.
    """
    return _transform(ticket, target, order, mapping, rescale_shifts, deeper=False)


def known_betas(ticket: Ticket, target: nn.Module) -> dict[str, Tensor]:
    """The betas that a ticket had when it was as deep as a network, the last time; empty if it never was.

    With them in the network, `squeeze` gives back what `stretch` was given, also where they had been measured.

    Args:
        ticket: a ticket of `stretch` or `squeeze`.
        target: a network of its kind.

    Returns:
        By the names of the network's state dict, of shape ().
    """
    names = {name: beta for name, beta in target.state_dict().items() if name.endswith(".beta")}
    for step in reversed(ticket.details.get("elastic", [])):
        if names and step.get("betas", {}).keys() == names.keys():
            return {name: torch.tensor(step["betas"][name], dtype=beta.dtype) for name, beta in names.items()}
    return {}


def _transform(
    ticket: Ticket, target: nn.Module, order: Order, mapping: str | None, rescale_shifts: bool, deeper: bool
) -> Ticket:
    expected = take_snapshot(target)
    old, new = _blocks(ticket, target, expected)
    counts, targets = ([len(stage) for stage in blocks.elastic] for blocks in (old, new))
    name = type(target).__name__
    if any(after < before if deeper else after > before for before, after in zip(counts, targets, strict=True)):
        verb, wrong, other = ("stretch", "fewer", "squeeze") if deeper else ("squeeze", "more", "stretch")
        raise InputError(
            f"{verb} cannot turn a ticket with stages of {counts} blocks into a {name} with {targets}, which has "
            f"{wrong} somewhere; use {other}."
        )
    if mapping is None:
        sources = [default_sources(*pair, order) for pair in zip(counts, targets, strict=True)]
    else:
        sources = parse_mapping(mapping, counts, new.elastic)
    blocks = dict(zip(new.fixed, old.fixed, strict=True))
    for places, names, stage in zip(new.elastic, old.elastic, sources, strict=True):
        blocks |= {place: names[source] for place, source in zip(places, stage, strict=True)}
    known = ticket.details.get("unscaled_shifts", {})
    unscaled: dict[str, Any] = {}

    def moved(state: Snapshot, part: str) -> Snapshot:
        result = _moved(state, blocks, expected, name)
        if rescale_shifts:
            unscaled[part] = _scale_shifts(result, state, blocks, known.get(part, {}))
        return result

    state_dict = moved(ticket.state_dict, "state_dict")
    rewind = None if ticket.rewind is None else moved(ticket.rewind, "rewind")
    step = {
        "source_checksum": ticket.checksum,
        "from": counts,
        "to": targets,
        "mapping": format_mapping(sources),
        "rescale_shifts": rescale_shifts,
        "betas": {n: value.item() for n, value in (ticket.rewind or ticket.state_dict).items() if n.endswith(".beta")},
    }
    details = {key: value for key, value in ticket.details.items() if key != "unscaled_shifts"}
    details["elastic"] = [*details.get("elastic", []), step]
    if any(unscaled.values()):
        details["unscaled_shifts"] = unscaled
    config = _deepened(ticket.config, target)
    return dataclasses.replace(ticket, state_dict=state_dict, rewind=rewind, details=details, config=config)


def _blocks(ticket: Ticket, target: nn.Module, expected: Snapshot) -> tuple[BlockNames, BlockNames]:
    """The blocks of the ticket and of the target."""
    block_names = getattr(target, "block_names", None)
    if block_names is None:
        raise InputError(
            f"target={type(target).__name__} has no stages of blocks to stretch; give a ReActNet18 or a ReActNetA."
        )
    old, new = block_names(ticket.state_dict), block_names(expected)
    fits = len(old.elastic) == len(new.elastic) and len(old.fixed) == len(new.fixed) and all(old.elastic)
    if not fits:
        raise InputError(f"the ticket is not of a {type(target).__name__}; give a target network of the ticket's kind.")
    return old, new


def _moved(state: Mapping[str, Tensor], blocks: Mapping[str, str], expected: Snapshot, network: str) -> Snapshot:
    """A state of the ticket at the places of the target, with the target's betas; copies of every tensor."""
    places: dict[str, list[str]] = {}
    for place, source in blocks.items():
        places.setdefault(source, []).append(place)
    found: Snapshot = {}
    for name, tensor in state.items():
        parts = name.split(".")
        block = next((b for n in (2, 3) if (b := ".".join(parts[:n])) in places), None)
        if block is None and parts[0] == "body":
            # A block that is dropped.
            continue
        for place in [""] if block is None else places[block]:
            found[place + name.removeprefix(block or "")] = tensor.clone()
    problems = (
        ("lacks", sorted(expected.keys() - found.keys())),
        ("has in addition", sorted(n for n in found.keys() - expected.keys() if not n.endswith(".mask"))),
        ("has in another shape", sorted(n for n in expected if n in found and expected[n].shape != found[n].shape)),
    )
    for problem, names in problems:
        if names:
            raise InputError(
                f"the ticket does not fit target={network}: it {problem} {names[0]!r}; give a network that differs in "
                "its depth alone."
            )
    for name in found:
        if name.endswith(".beta"):
            found[name] = expected[name].to(found[name].dtype)
    masks = [name for name in found if name.endswith(".mask")]
    # In the order of the network, as in every ticket.
    layers = {name: index for index, name in enumerate(expected)}
    masks.sort(key=lambda name: layers[name.removesuffix("mask") + "weight"])
    return {name: found[name] for name in [*expected, *masks]}


def _scale_shifts(
    moved: Snapshot, state: Mapping[str, Tensor], blocks: Mapping[str, str], known: Mapping[str, Any]
) -> dict[str, Any]:
    """Scales the shifts of RSign in `moved` from the betas of `state` to those that are there.

    Args:
        moved: changed in place.
        state: where the tensors come from.
        blocks: from a block of the target to that of the ticket.
        known: shifts before earlier transformations, as returned.

    Returns:
        For each unit whose shifts could not be found back exactly, what they were before any transformation, and the
        beta that they belonged to.
    """
    unscaled = {}
    for name in [name for name in moved if name.endswith(".beta")]:
        unit = name.removesuffix(".beta")
        place = next(place for place in blocks if f"{unit}.".startswith(f"{place}."))
        source = blocks[place] + unit.removeprefix(place)
        key, beta = f"{unit}.rsign.shift", moved[name].item()
        shift, old_beta = state[f"{source}.rsign.shift"], state[f"{source}.beta"].item()
        # Scaled from the first shifts on, so that roundings neither add up nor stay when the old beta is back.
        recorded = False
        if source in known:
            first, first_beta = torch.tensor(known[source]["shift"], dtype=shift.dtype), known[source]["beta"]
            if torch.equal(_scaled(first, first_beta, old_beta), shift):
                shift, old_beta, recorded = first, first_beta, beta != first_beta
        moved[key] = _scaled(shift, old_beta, beta)
        if recorded or not torch.equal(_scaled(moved[key], beta, old_beta), shift):
            unscaled[unit] = {"shift": shift.tolist(), "beta": old_beta}
    return unscaled


def _scaled(shift: Tensor, old_beta: float, beta: float) -> Tensor:
    return shift.clone() if beta == old_beta else (shift.double() * (beta / old_beta)).to(shift.dtype)


def _deepened(config: Mapping[str, Any], target: nn.Module) -> dict[str, Any]:
    """The config with the depth of the target, where it says how the backbone is built."""
    model = config.get("hyper_parameters")
    backbone = model.get("backbone") if isinstance(model, Mapping) else None
    if not isinstance(model, Mapping) or not isinstance(backbone, Mapping) or "class_path" not in backbone:
        return dict(config)
    arguments = {**backbone.get("init_args", {}), **getattr(target, "depth", {})}
    return {**config, "hyper_parameters": {**model, "backbone": {**backbone, "init_args": arguments}}}
