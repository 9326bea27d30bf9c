"""One pruning step: from the scores of a network's weights to its next masks."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError
from bnfree.tickets.layers import prunable_layers
from bnfree.tickets.masks import Masks, layer_mask
from bnfree.tickets.ranking import keep_highest
from bnfree.tickets.schedule import check_density, check_rate, kept_count
from bnfree.tickets.scopes import Scope, Units, get_scope, keep_alike, protect, units_of
from bnfree.tickets.scores import Score, get_score
from bnfree.tickets.scoring import score_weights


def prune(
    network: nn.Module,
    density: float | None = None,
    *,
    rate: float | None = None,
    score: str | type[Score] = "standardized",
    scope: str | Scope = "global",
    layers: Mapping[str, BinaryConv2d] | None = None,
    min_per_filter: int = 1,
    min_layer_density: float = 0.0,
    gradients: Mapping[str, Tensor] | None = None,
    flip_rates: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Masks:
    """The masks that a network would have next; the network itself stays as it is until `apply`.

    Weights that are pruned already stay pruned. The number of survivors is exact, whatever the ties: the integer
    nearest to density * weights (or (1 - rate) * survivors), over all layers together for the scopes `global` and
    blocks, in each layer for the others. Blocks are kept as far as they fit into that number, never more. Weights that
    a guard protects count as survivors. Equal networks give equal masks, in every process and on every device.

    Args:
        network: the network, pruned or not.
        density: share of all weights of `layers` that is to survive, above 0 and at most 1.
        rate: in place of it the share of the weights that survive now which is to be pruned, between 0 and 1.
        score: what is kept, see `score_weights`.
        scope: among which weights the ranking is made: `global`, `layer`, `filter`, `block32`, `block64`, the dotted
            path of a `Scope`, or a `Scope`, see `bnfree.tickets.scopes`.
        layers: what is pruned, by name; None: the `prunable_layers`.
        min_per_filter: guard against emptied filters and layers: each filter keeps at least so many weights, its best.
        min_layer_density: guard against layers that hold up the signal: each keeps at least this share of its weights.
        gradients: for the score `snip`, see `effective_gradients`.
        flip_rates: for the score `flip`, see `FlipCounts`.
        seed: for the score `random`.

    Returns:
        For each of `layers` a bool tensor of its weight's shape on the CPU, True where a weight survives.

    Raises:
        InputError: a value out of range, an unknown score or scope, a density above the present one, or one so low that
            the guards need more weights (see `least_density` to know before a run).

    Example:
        >>> from bnfree.backbones import ReActNet18
        >>> from bnfree.tickets import apply
        >>> network = ReActNet18(num_classes=10, width=8)
        >>> masks = prune(network, density=0.2, scope="global")
        >>> flat = torch.cat([mask.flatten() for mask in masks.values()])
        >>> int(flat.sum()) == round(0.2 * flat.numel())
        True
        >>> apply(network, masks)
    """
    if (density is None) == (rate is None):
        raise InputError(f"density={density} and rate={rate}: give exactly one of the two.")
    if density is not None:
        check_density(density)
    if rate is not None:
        check_rate(rate)
    _check_guards(min_per_filter, min_layer_density)
    how = get_scope(scope)
    layers = prunable_layers(network) if layers is None else layers
    scores = score_weights(layers, score, gradients=gradients, flip_rates=flip_rates, seed=seed)
    masks = {name: layer_mask(layer) for name, layer in layers.items()}
    if how.layers_together and len(layers) > 1 and not get_score(score).comparable:
        scores = {name: _in_units_of_the_layer(scores[name], mask) for name, mask in masks.items()}
    units, first = {}, 0
    for name, mask in masks.items():
        units[name] = units_of(scores[name], mask, how.block, first)
        first += units[name].sizes.numel()
    pruned: Masks = {}
    for group in [list(layers)] if how.layers_together else [[name] for name in layers]:
        quota = _quota({name: masks[name] for name in group}, density, rate)
        pruned |= _prune_group({n: units[n] for n in group}, masks, how, quota, min_per_filter, min_layer_density)
    return {name: pruned[name] for name in layers}


def least_density(
    layers: Mapping[str, BinaryConv2d],
    scope: str | Scope = "global",
    min_per_filter: int = 1,
    min_layer_density: float = 0.0,
) -> float:
    """The lowest density at which the guards can be met whatever the scores: what a run can check before it starts.

    Args:
        layers: what is pruned, by name, with the masks it has.
        scope: as in `prune`.
        min_per_filter: as in `prune`.
        min_layer_density: as in `prune`.

    Raises:
        InputError: a value out of range or an unknown scope.
    """
    _check_guards(min_per_filter, min_layer_density)
    how = get_scope(scope)
    needed, weights = [], []
    for layer in layers.values():
        mask = layer_mask(layer)
        sizes = units_of(mask.float(), mask, how.block, 0).sizes
        # Guards keep whole units, so that up to a unit less one weight comes on top.
        largest = sizes.amax(1)
        filters = torch.minimum(sizes.sum(1), (min_per_filter - 1 + largest) * (min_per_filter > 0)).sum()
        least = math.ceil(min_layer_density * mask.numel())
        needed.append(min(max(int(filters), least + (int(largest.max()) - 1) * (least > 0)), int(mask.sum())))
        weights.append(mask.numel())
    if how.layers_together:
        return sum(needed) / sum(weights)
    return max(least / count for least, count in zip(needed, weights, strict=True))


def _check_guards(min_per_filter: int, min_layer_density: float) -> None:
    if min_per_filter < 0:
        raise InputError(f"min_per_filter={min_per_filter} must be at least 0.")
    if not 0 <= min_layer_density <= 1:
        raise InputError(f"min_layer_density={min_layer_density} must be between 0 and 1.")


def _in_units_of_the_layer(scores: Tensor, mask: Tensor) -> Tensor:
    size = scores[mask].double().square().mean().sqrt()
    return (scores / size).float() if size > 0 else scores


def _quota(masks: Masks, density: float | None, rate: float | None) -> int:
    """How many weights of these layers are to survive."""
    survivors = sum(int(mask.sum()) for mask in masks.values())
    weights = sum(mask.numel() for mask in masks.values())
    if density is None:
        return kept_count(survivors, 1 - (rate or 0))
    quota = kept_count(weights, density)
    if quota > survivors:
        where = "the network" if len(masks) > 1 else repr(next(iter(masks)))
        raise InputError(
            f"density={density} is above {survivors / weights:.6g}, the present density of {where}, and pruned weights "
            "stay pruned; give a lower density, or the same scope as before."
        )
    return quota


def _prune_group(
    units: dict[str, Units], masks: Masks, scope: Scope, quota: int, min_per_filter: int, min_layer_density: float
) -> Masks:
    """The masks of layers that share a ranking."""
    guarded = {
        name: protect(u, min_per_filter, math.ceil(min_layer_density * masks[name].numel()))
        for name, u in units.items()
    }
    needed = sum(int(u.sizes[guarded[name]].sum()) for name, u in units.items())
    if needed > quota:
        weights = sum(masks[name].numel() for name in units)
        where = "the network" if len(units) > 1 else repr(next(iter(units)))
        raise InputError(
            f"density {quota / weights:.6g} leaves {quota} weights of {where}, but min_per_filter={min_per_filter} and "
            f"min_layer_density={min_layer_density} keep {needed}; prune less, or lower these two."
        )
    if scope.filters_alike:
        # Equal numbers in every filter meet both guards.
        return {name: u.expand(keep_alike(u, quota), masks[name].shape) & masks[name] for name, u in units.items()}
    free = {name: (u.sizes > 0) & ~guarded[name] for name, u in units.items()}
    scores, keys, sizes = (
        torch.cat([getattr(u, field)[free[name]] for name, u in units.items()]) for field in ("scores", "keys", "sizes")
    )
    chosen = keep_highest(scores, keys, quota - needed, None if scope.block == 1 else sizes)
    start, result = 0, {}
    for name, u in units.items():
        count = int(free[name].sum())
        kept = guarded[name].clone()
        kept[free[name]] = chosen[start : start + count]
        start += count
        result[name] = u.expand(kept, masks[name].shape) & masks[name]
    return result
