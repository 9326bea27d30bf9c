"""Tickets made of others: for deeper and shallower networks, and for other data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bnfree.errors import InputError
from bnfree.lightning_modules.experiments.tickets.pruned_network import TicketFile, check_output, read_ticket_file
from bnfree.lightning_modules.experiments.tickets.target_network import (
    ConfiguredNetwork,
    betas_were_measured,
    carried,
    configured_network,
    measured_constants,
    training_images,
)
from bnfree.lightning_modules.training.settings import FitSettings, words_of
from bnfree.tickets import (
    LayerDensity,
    Ticket,
    known_betas,
    mask_statistics,
    save_ticket,
    squeeze,
    stretch,
    take_snapshot,
    transfer,
)
from bnfree.tickets.carrying import Carried
from bnfree.tickets.mapping import Order


@dataclass(frozen=True, kw_only=True)
class TargetSettings:
    """A ticket, and the network that a new one of it is for."""

    ticket: str | Path
    """The ticket file."""
    output: str | Path
    """Where the new ticket goes."""
    overwrite: bool = False
    """Replace a file that is there."""
    to: str | Path | None = None
    """What describes the network: a config of `fit`, a run directory, a checkpoint or another ticket; None: the ticket
    itself."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Plain values by dotted name, such as `{"model.backbone.width": 32}`, which beat `to`."""
    arguments: Sequence[str] = ()
    """The same in words, as on the command line."""
    copy: Carried = "both"
    """What the new ticket takes along, see `bnfree.tickets.carry`."""
    calibrate: bool = False
    """Measure the new network's betas on training images of its data section."""
    seed: int = 0
    """Of whatever is drawn."""


@dataclass(frozen=True, kw_only=True)
class ElasticSettings(TargetSettings):
    """A ticket for a network of another depth, which is given here, or by `to` and `options`."""

    blocks_per_stage: Sequence[int] | None = None
    """Depth of a ReActNet-18."""
    repeated_blocks: int | None = None
    """Number of equal blocks of a ReActNet-A."""
    order: Order = "append"
    """Blocks 1 2 become 1 2 1 2 (`append`) or 1 1 2 2 (`interpolate`); squeezing undoes the same."""
    mapping: str | None = None
    """In place of `order`, which block goes where, see `bnfree.tickets.stretch`."""
    keep_shifts: bool = False
    """Keep the shifts of the signs as they are, and not their thresholds."""


@dataclass(frozen=True)
class ElasticResult:
    """A ticket of another depth."""

    path: Path
    """Its file."""
    ticket: Ticket
    before: LayerDensity
    """What the masks kept, over all layers."""
    after: LayerDensity
    """What they keep now."""
    betas: str | None
    """Where the betas come from, in words; None: the network has none."""

    @property
    def step(self) -> dict[str, Any]:
        """What was done: block counts `from` and `to`, and the `mapping`."""
        step: dict[str, Any] = self.ticket.details["elastic"][-1]
        return step


def stretch_ticket_file(settings: ElasticSettings) -> ElasticResult:
    """Writes a ticket for a deeper network, whose blocks are copies of the ticket's.

    Raises:
        InputError: settings that do not go together, files that cannot be read or written, or a network that is not
            deeper; nothing has been written then.

    Example:
        >>> settings = ElasticSettings(ticket="ticket.pt", blocks_per_stage=(6, 6, 6, 6), output="deeper.pt")
        >>> stretch_ticket_file(settings).after.density  # doctest: +SKIP
        0.0512
    """
    return _of_another_depth(settings, deeper=True)


def squeeze_ticket_file(settings: ElasticSettings) -> ElasticResult:
    """Writes a ticket for a shallower network; undoes `stretch_ticket_file` in the same order.

    Raises:
        InputError: as there, or a network that is not shallower.
    """
    return _of_another_depth(settings, deeper=False)


def _of_another_depth(settings: ElasticSettings, deeper: bool) -> ElasticResult:
    words = _network_words(settings)
    if settings.to is None and not any("blocks" in word for word in words):
        raise InputError("the new depth is not given; add --blocks_per_stage, --repeated_blocks or --to.")
    output = check_output(settings.output, settings.overwrite, settings.ticket)
    pruned = read_ticket_file(settings.ticket)
    if settings.to is None and "model" not in pruned.sections:
        raise InputError(f"ticket={str(settings.ticket)!r} does not say which network it is of; give a config as --to.")
    target = configured_network(pruned.sections, words, settings.to, settings.seed, f"ticket={str(settings.ticket)!r}")

    transform = stretch if deeper else squeeze
    given = (settings.order, settings.mapping, not settings.keep_shifts)
    betas, images = _prepared_betas(pruned, target), None
    ticket = transform(pruned.ticket, target.network, *given)
    if settings.calibrate:
        images = training_images(target.data, target.network)
        measured = measured_constants(target.network, ticket.start(), images)
        betas_alone = {name: tensor for name, tensor in measured.items() if name.endswith(".beta")}
        target.network.load_state_dict(betas_alone, strict=False)
        ticket = transform(pruned.ticket, target.network, *given)
        betas = f"measured on {len(images)} training images"
    described = settings.to is not None or bool(settings.options) or bool(settings.arguments)
    ticket = carried(ticket, target, settings.copy, images, described)
    save_ticket(ticket, output)
    if betas.startswith("analytic") and betas_were_measured(pruned.sections, pruned.start):
        betas += "; the ticket's were measured, which --calibrate does for the new depth"
    before, after = (mask_statistics(masks).total for masks in (pruned.masks, ticket.masks))
    return ElasticResult(output, ticket, before, after, betas if _has_betas(ticket) else None)


def _network_words(settings: TargetSettings) -> list[str]:
    depth: dict[str, Any] = {}
    if isinstance(settings, ElasticSettings):
        if settings.blocks_per_stage is not None:
            depth["model.backbone.blocks_per_stage"] = list(settings.blocks_per_stage)
        if settings.repeated_blocks is not None:
            depth["model.backbone.repeated_blocks"] = settings.repeated_blocks
    return words_of(FitSettings(options={**depth, **settings.options}, arguments=settings.arguments))


def _prepared_betas(pruned: TicketFile, target: ConfiguredNetwork) -> str:
    """Gives the target the betas that the ticket had at its depth, if it had any; says in words which ones it has."""
    if target.betas_from is not None:
        return f"those of {target.betas_from}"
    known = known_betas(pruned.ticket, target.network)
    target.network.load_state_dict(known, strict=False)
    return "those that the ticket had when it was as deep" if known else "analytic, those of a fresh network"


def _has_betas(ticket: Ticket) -> bool:
    return any(name.endswith(".beta") for name in ticket.state_dict)


@dataclass(frozen=True, kw_only=True)
class TransferSettings(TargetSettings):
    """A ticket for other images and classes; `to` must be given."""

    keep_classifier: bool = False
    """Carry the classifier over too: the classes are the same."""


@dataclass(frozen=True)
class TransferredPart:
    """What has happened to a part of the network: stem, body or classifier."""

    fresh: bool
    """Whether it was drawn anew."""
    shapes: dict[str, tuple[tuple[int, ...] | None, tuple[int, ...]]]
    """Shape of each tensor in the ticket and in the network; None: the ticket has none."""
    numbers: int
    """Size of its tensors together."""
    masks: int
    """How many of its layers are pruned."""


@dataclass(frozen=True)
class TransferResult:
    """A ticket for other data."""

    path: Path
    """Its file."""
    ticket: Ticket
    parts: dict[str, TransferredPart]
    """Of the network, in its order."""
    betas: str | None
    """Where the betas come from, in words; None: the network has none."""


def transfer_ticket_file(settings: TransferSettings) -> TransferResult:
    """Writes a ticket for another data set: other classes, other image channels, another stem.

    Raises:
        InputError: settings that do not go together, files that cannot be read or written, or a network of another
            depth, width or kind; nothing has been written then.
    """
    if settings.to is None:
        raise InputError("to=None must be a config, a run directory, a checkpoint or another ticket.")
    output = check_output(settings.output, settings.overwrite, settings.ticket)
    pruned = read_ticket_file(settings.ticket)
    target = configured_network(
        pruned.sections, _network_words(settings), settings.to, settings.seed, f"ticket={str(settings.ticket)!r}"
    )
    shapes = {name: tuple(tensor.shape) for name, tensor in take_snapshot(target.network).items()}

    ticket, images = transfer(pruned.ticket, target.network, settings.keep_classifier), None
    betas = "those of the ticket"
    if settings.calibrate:
        images = training_images(target.data, target.network)
        ticket = _calibrated(ticket, target.network, images)
        betas = f"measured on {len(images)} training images, with the shifts of the signs"
    elif settings.copy == "mask":
        betas = "analytic, those of a fresh network"
    ticket = carried(ticket, target, settings.copy, images, described=True)
    save_ticket(ticket, output)
    parts = _parts(pruned.state_dict, shapes, ticket.details["transfer"][-1]["fresh"])
    return TransferResult(output, ticket, parts, betas if _has_betas(ticket) else None)


def _calibrated(ticket: Ticket, network: nn.Module, images: Tensor) -> Ticket:
    """The ticket with betas and shifts that fit other images, in the weights that training starts from."""
    measured = measured_constants(network, ticket.start(), images)
    if ticket.rewind is None:
        return replace(ticket, state_dict={**ticket.state_dict, **measured})
    return replace(ticket, rewind={**ticket.rewind, **measured})


def _parts(
    before: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], fresh: Sequence[str]
) -> dict[str, TransferredPart]:
    found: dict[str, TransferredPart] = {}
    for part in dict.fromkeys(name.partition(".")[0] for name in shapes):
        own = {name: shape for name, shape in shapes.items() if name.partition(".")[0] == part}
        pairs = {name: (tuple(before[name].shape) if name in before else None, shape) for name, shape in own.items()}
        masks = sum(name.partition(".")[0] == part and name.endswith(".mask") for name in before)
        found[part] = TransferredPart(part in fresh, pairs, sum(map(math.prod, own.values())), masks)
    return found
