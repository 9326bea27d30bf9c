"""From learned scores to masks: the largest |score| survive, in exact numbers, on the device where the scores are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from bnfree.errors import InputError
from bnfree.tickets.masks import Masks
from bnfree.tickets.ranking import keep_highest, tie_keys
from bnfree.tickets.schedule import check_density, kept_count

MultiPrizeScope = Literal["layer", "global"]


@torch.no_grad()
def masks_of_scores(scores: Mapping[str, Tensor], density: float, scope: MultiPrizeScope = "layer") -> Masks:
    """The masks that keep the weights of the largest |score|.

    The number of survivors is exact, the integer nearest to density * weights, whatever the ties. Every filter keeps
    its best weight, whatever the other filters' scores: an emptied one would never give its scores a gradient again.
    Equal scores give equal masks, in every process and on every device.

    Args:
        scores: floating point (O, I/groups, kH, kW) by name of the layer.
        density: share of the weights that survive, above 0 and at most 1.
        scope: `layer`: this share of each layer; `global`: of all layers together.

    Returns:
        For each layer a bool tensor of its scores' shape, on their device.

    Raises:
        InputError: a value out of range, fewer survivors than filters, or scores that are not finite.
    """
    masks: Masks = {}
    shapes = {name: score.shape for name, score in scores.items()}
    for group, quota in _quotas(shapes, density, scope):
        flat = torch.cat([scores[name].detach().flatten() for name in group]).float().abs_()
        if not flat.isfinite().all():
            raise InputError(f"the scores of {group[0]!r} are not finite: training diverged; lower the learning rate.")
        parts = flat.split([shapes[name].numel() for name in group])
        for name, part in zip(group, parts, strict=True):
            rows = part.view(shapes[name][0], -1)
            rows.scatter_(1, rows.argmax(1, keepdim=True), torch.inf)
        kept = keep_highest(flat, tie_keys(0, len(flat), flat.device), quota)
        for name, part in zip(group, kept.split([len(part) for part in parts]), strict=True):
            masks[name] = part.view(shapes[name]).clone()
    return masks


def check_learned_density(shapes: Mapping[str, torch.Size], density: float, scope: MultiPrizeScope) -> None:
    """Refuses a density that `masks_of_scores` would refuse.

    Args:
        shapes: of the layers' weights, by name.
        density: as in `masks_of_scores`.
        scope: as in `masks_of_scores`.

    Raises:
        InputError: a value out of range, or fewer survivors than filters.
    """
    list(_quotas(shapes, density, scope))


def _quotas(
    shapes: Mapping[str, torch.Size], density: float, scope: MultiPrizeScope
) -> Iterable[tuple[list[str], int]]:
    """Layers that share a ranking, and how many weights of them survive."""
    check_density(density)
    if scope not in ("layer", "global"):
        raise InputError(f"scope={scope!r} is not known; choose 'layer' or 'global'.")
    for group in [list(shapes)] if scope == "global" else [[name] for name in shapes]:
        quota = kept_count(sum(shapes[name].numel() for name in group), density)
        filters = sum(shapes[name][0] for name in group)
        if quota < filters:
            where = "the network" if scope == "global" else repr(group[0])
            raise InputError(
                f"density={density} leaves {quota} weights of {where} for {filters} filters, and each keeps one at "
                "least; prune less."
            )
        yield group, quota
