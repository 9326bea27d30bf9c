"""Among which weights a ranking is made, and in what units: networks, layers, filters, words of a packed runtime.

    global       single weights, ranked over all layers together; layers end at different densities
    layer        single weights, ranked in each layer; every layer ends at the same density
    filter       as `layer`, and every filter of a layer keeps the same number, give or take one (the extra ones go to
                 the filters whose next weight scores highest)
    block32      32 neighbouring input channels of one tap of one filter are kept or pruned together, ranked by their
    block64      mean score over all layers together; 64 likewise. A packed runtime can skip such a word; it cannot
                 skip single weights

How layers are made comparable for `global` and the blocks is a matter of the score: see `bnfree.tickets.scores`. Where
the input channels are no multiple of the block, the last block of a tap is smaller, and its mean varies more. A 1x1
filter of no more input channels than a block is a single block: the guard against empty filters keeps it dense, and
without that guard the filter goes as a whole and leaves its channel to the shortcut.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bnfree.errors import InputError
from bnfree.plugins import resolve
from bnfree.tickets.ranking import keep_highest, rank_in_rows, tie_keys


@dataclass(frozen=True)
class Scope:
    """How a ranking is made."""

    name: str
    """Its name."""
    layers_together: bool
    """Whether all layers share one ranking and one count."""
    filters_alike: bool = False
    """Whether the filters of a layer keep equal numbers."""
    block: int = 1
    """Input channels of one tap that are kept or pruned together."""


GLOBAL = Scope("global", layers_together=True)
LAYER = Scope("layer", layers_together=False)
FILTER = Scope("filter", layers_together=False, filters_alike=True)
BLOCK32 = Scope("block32", layers_together=True, block=32)
BLOCK64 = Scope("block64", layers_together=True, block=64)


def get_scope(scope: str | Scope) -> Scope:
    """The scope that a name or a dotted path stands for.

    Raises:
        InputError: no such scope, or something that is none.
    """
    found = resolve("scope", scope)
    if not isinstance(found, Scope):
        raise InputError(f"scope={scope!r} is no scope; give the dotted path of a bnfree.tickets.Scope.")
    return found


@dataclass
class Units:
    """The units of one layer: what is kept or pruned as a whole. Units without survivors are listed too."""

    sizes: Tensor
    """int64 (O, U): surviving weights in each of the U units of each filter."""
    scores: Tensor
    """float32 (O, U): mean score of the survivors, -inf where there are none."""
    keys: Tensor
    """int64 (O, U): order among equal scores, see `tie_keys`."""
    members: Tensor | None
    """int64 (I/groups * kH * kW,): the unit of each weight of a filter; None: every weight is one."""

    def expand(self, kept: Tensor, shape: torch.Size) -> Tensor:
        """Which weights belong to kept units: bool (O, U) to bool of the weight's shape."""
        return (kept if self.members is None else kept[:, self.members]).reshape(shape)


def units_of(scores: Tensor, mask: Tensor, block: int, first: int) -> Units:
    """Cuts a layer into units.

    Args:
        scores: float32 (O, I/groups, kH, kW), -inf where pruned.
        mask: bool, same shape, True where a weight survives.
        block: input channels of one tap in a unit.
        first: number of units in the layers before, for the order of ties.
    """
    if block == 1:
        sizes = mask.flatten(1).long()
        return Units(sizes, scores.flatten(1), tie_keys(first, sizes.numel()).view_as(sizes), None)
    channels, height, width = mask.shape[1:]
    taps = height * width
    members = (torch.arange(channels)[:, None] // block * taps + torch.arange(taps)).flatten()
    count = -(-channels // block) * taps
    empty = torch.zeros(len(mask), count, dtype=torch.float64)
    sizes = empty.index_add(1, members, mask.flatten(1).double())
    sums = empty.index_add(1, members, scores.double().where(mask, 0).flatten(1))
    means = torch.where(sizes > 0, sums / sizes.clamp(min=1), -torch.inf).float()
    return Units(sizes.long(), means, tie_keys(first, sizes.numel()).view_as(sizes), members)


def protect(units: Units, min_per_filter: int, min_layer: int) -> Tensor:
    """The units that the guards keep, bool (O, U): the best of each filter and of the layer.

    Args:
        units: the layer's units.
        min_per_filter: weights to keep in each filter, as far as it has so many.
        min_layer: weights to keep in the layer, likewise.
    """
    kept = torch.zeros_like(units.sizes, dtype=torch.bool)
    for _ in range(min_per_filter):
        lacking = ((units.sizes * kept).sum(1, keepdim=True) < min_per_filter) & (units.sizes > 0) & ~kept
        scores = units.scores.where(lacking, -torch.inf)
        best = lacking & (scores == scores.amax(1, keepdim=True))
        chosen = units.keys.where(best, torch.iinfo(torch.int64).max).argmin(1, keepdim=True)
        kept |= best & torch.zeros_like(kept).scatter_(1, chosen, True)
    missing = min_layer - int(units.sizes[kept].sum())
    if missing > 0:
        free = (units.sizes > 0) & ~kept
        # Rounded up to whole units.
        largest = int(units.sizes.max())
        sizes = None if units.members is None else units.sizes[free]
        kept[free] = keep_highest(units.scores[free], units.keys[free], missing + largest - 1, sizes)
    return kept


def keep_alike(units: Units, quota: int) -> Tensor:
    """Keeps `quota` single weights of a layer, spread evenly over its filters: bool (O, U)."""
    ranks = rank_in_rows(units.scores, units.keys).where(units.sizes > 0, units.sizes.shape[1])
    per_rank = torch.bincount(ranks.flatten(), minlength=units.sizes.shape[1] + 1)[:-1]
    # All weights of the first ranks, and the best of the rank in which the quota ends.
    whole = int((per_rank.cumsum(0) <= quota).sum())
    kept = ranks < whole
    last = ranks == whole
    if whole < units.sizes.shape[1]:
        kept[last] = keep_highest(units.scores[last], units.keys[last], quota - int(kept.sum()))
    return kept
