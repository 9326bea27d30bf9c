"""Controls: what a ticket is compared with, to tell whether its mask, its weights or its signs matter.

Each is a pure function of its arguments and a seed, the same in every process, and leaves the global random state
alone. A control that has not done what it says looks like a result, so compare it with the ticket: `overlap` must be at
its chance level.

The classes are what `bnfree lottery controls` finds by name. A control of one's own is a function of a
`ControlledTicket`, or a class with such a function called `draw`, and is given as `package.name`:

    def halved(ticket):
        return ticket.masks, {name: value / 2 for name, value in ticket.start.items()}

Source: the sanity checks of Frankle et al., "Pruning neural networks at initialization: why are we missing the mark?"
(ICLR 2021, arXiv 2009.08576).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from bnfree.errors import InputError
from bnfree.tickets.generators import layer_generator
from bnfree.tickets.masks import Masks
from bnfree.tickets.rewinding import Snapshot, seen_weights


def random_masks(masks: Mapping[str, Tensor], seed: int, keep: Literal["layer", "global"] = "layer") -> Masks:
    """Random masks with the densities of given ones.

    Args:
        masks: the ticket's masks.
        seed: of the draw; another seed gives another mask.
        keep: `layer`: as many survivors in each layer, elsewhere; `global`: as many in all, anywhere. Filters may end
            empty.

    Raises:
        InputError: unknown choice.
    """
    if keep not in ("layer", "global"):
        raise InputError(f"keep={keep!r} is not known; choose 'layer' or 'global'.")
    if keep == "layer":
        return {name: _shuffled(mask, layer_generator(seed, name)).view(mask.shape) for name, mask in masks.items()}
    if not masks:
        return {}
    everything = torch.cat([mask.flatten() for mask in masks.values()])
    parts = _shuffled(everything, layer_generator(seed, "")).split([mask.numel() for mask in masks.values()])
    return {name: part.view(mask.shape).clone() for (name, mask), part in zip(masks.items(), parts, strict=True)}


def reinitialize(
    network: nn.Module, snapshot: Mapping[str, Tensor], masks: Mapping[str, Tensor], seed: int
) -> Snapshot:
    """A snapshot whose masked layers have fresh latent weights; all other parameters stay.

    They are normal around 0 with the standard deviation that the layer's latent weights have in the snapshot, so that
    the same learning rate moves them as fast. To draw the other parameters anew too, take a snapshot of a new network.

    Args:
        network: the network that the snapshot belongs to; its weights are not used.
        snapshot: the weights that the ticket starts from.
        masks: the ticket's masks: these layers are drawn, pruned weights included.
        seed: of the draw.

    Raises:
        InputError: masks that do not fit the network or the snapshot.
    """
    result = dict(snapshot)
    for name, *_ in seen_weights(network, snapshot, masks):
        old = snapshot[f"{name}.weight"]
        noise = torch.randn(old.shape, generator=layer_generator(seed, name), dtype=torch.float64)
        result[f"{name}.weight"] = (noise * old.double().std(correction=0)).to(old.dtype)
    return result


def shuffle_signs(
    network: nn.Module, snapshot: Mapping[str, Tensor], masks: Mapping[str, Tensor], seed: int
) -> Snapshot:
    """A snapshot in which the signs of each filter's surviving weights have changed places; all other parameters stay.

    Every filter keeps its numbers of positive and negative survivors, and what the magnitudes say within each sign. The
    signs are those that the layer sees, before and afterwards: in a standardised layer the positive and the negative
    weights are scaled, by one factor each, so that their mean is 0 and takes no sign back.

    Args:
        network: says which layers are standardised; its weights are not used.
        snapshot: the weights that the ticket starts from.
        masks: the ticket's masks.
        seed: of the draw.

    Raises:
        InputError: masks that do not fit the network or the snapshot.
    """
    result = dict(snapshot)
    for name, layer, seen, mask in seen_weights(network, snapshot, masks):
        generator = layer_generator(seed, name)
        weight = seen.clone()
        for row, keep in zip(weight, mask, strict=True):
            kept = row[keep]
            if len(kept) < 2:
                continue
            positive = _shuffled(kept >= 0, generator)
            size = kept.abs()
            if layer.standardize and positive.any() and not positive.all():
                # A weight that is as good as its mean has no magnitude to carry a sign through rounding.
                size = size.clamp(min=1e-3 * float(size.mean()))
                total = size.sum() / 2
                size = torch.where(
                    positive, size * (total / size[positive].sum()), size * (total / size[~positive].sum())
                )
            row[keep] = torch.where(positive, size, -size)
        result[f"{name}.weight"] = weight.to(snapshot[f"{name}.weight"].dtype)
    return result


@dataclass(frozen=True)
class ControlledTicket:
    """What a control knows about the ticket that it is made of."""

    network: nn.Module
    """Says which layers are standardised and binary; its weights have no meaning."""
    masks: Masks
    """The ticket's masks: bool, by the layers' names."""
    start: Snapshot
    """The weights that the ticket starts from, by their names; pruned ones may be 0."""
    complete: Snapshot
    """The same with a weight where the ticket has pruned, too: of the rewind point, or of the trained dense network."""
    seed: int
    """Of all draws: another one for each seed of the run, level and control."""


class Control:
    """What takes one thing away from a ticket and leaves the rest."""

    title: ClassVar[str] = ""
    """Its name in words; empty: made of the class's name."""
    scope: ClassVar[str | None] = None
    """Among which weights masks are drawn; None: masks are the ticket's."""

    @staticmethod
    def draw(ticket: ControlledTicket) -> tuple[Masks, Snapshot]:
        """The masks and the weights that the control starts from; depends on `ticket` alone, as all processes draw."""
        raise NotImplementedError


class RandomLayerwise(Control):
    """Takes the mask away: each layer keeps as many weights as in the ticket, in places drawn at random."""

    title, scope = "random mask, layerwise", "layer"

    @staticmethod
    def draw(ticket: ControlledTicket) -> tuple[Masks, Snapshot]:
        """Other masks over weights that are there everywhere."""
        return random_masks(ticket.masks, ticket.seed, "layer"), ticket.complete


class RandomGlobal(Control):
    """Takes the mask and the densities of its layers away: as many weights in all, anywhere in the pruned layers."""

    title, scope = "random mask, global", "global"

    @staticmethod
    def draw(ticket: ControlledTicket) -> tuple[Masks, Snapshot]:
        """Other masks over weights that are there everywhere."""
        return random_masks(ticket.masks, ticket.seed, "global"), ticket.complete


class Reinit(Control):
    """Takes the weights away: fresh ones, as large as the layer's, under the ticket's mask."""

    title = "re-initialised"

    @staticmethod
    def draw(ticket: ControlledTicket) -> tuple[Masks, Snapshot]:
        """Drawn with the standard deviation of all weights of a layer, not of its survivors, which are larger."""
        every = {f"{name}.weight": ticket.complete[f"{name}.weight"] for name in ticket.masks}
        return ticket.masks, reinitialize(ticket.network, {**ticket.start, **every}, ticket.masks, ticket.seed)


class ShuffleSigns(Control):
    """Takes the signs away: those of each filter's survivors change places, mask and magnitudes are the ticket's."""

    title = "shuffled signs"

    @staticmethod
    def draw(ticket: ControlledTicket) -> tuple[Masks, Snapshot]:
        """Each filter keeps its numbers of positive and negative weights."""
        return ticket.masks, shuffle_signs(ticket.network, ticket.start, ticket.masks, ticket.seed)


def _shuffled(values: Tensor, generator: torch.Generator) -> Tensor:
    flat = values.detach().bool().cpu().flatten()
    return flat[torch.randperm(len(flat), generator=generator)]
