"""Channels of one network put into the order of another's, by their masks.

A network computes the same when the channels between its layers change places, and every mark that lies in fixed places
is gone. The residual trunk ties the channels of all units of a stage together, so that there are few orders to find:
one for each trunk. Each is an assignment problem given the others (Ainsworth et al., "Git Re-Basin", ICLR 2023, arXiv
2209.04836), begun from what does not depend on any order and repeated until nothing changes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bnfree.tickets.masks import Masks

MOST_ROUNDS = 30


def align(masks: Mapping[str, Tensor], like: Mapping[str, Tensor], left_out: Mapping[str, Tensor]) -> Masks:
    """Masks with their channels in the order that agrees most with other masks.

    Layers follow each other in the order of `like`; one with as many filters as input channels is taken for a residual
    unit, whose output is in the order of its input.

    Args:
        masks: bool (O, I, kH, kW) by layer, whose channels may have changed places.
        like: those in the order that is looked for.
        left_out: bool (O, I) by layer of `like`, kernels that must have no say.

    Returns:
        The masks of the layers that both have in one shape, in the order of `like`; the others as they are.
    """
    names = [name for name in like if name in masks and masks[name].shape == like[name].shape]
    groups, sizes = _groups({name: like[name] for name in names})
    known: dict[str, Tensor] = {}
    found: dict[str, Tensor] = {}
    for name in names:
        wanted, mask = like[name].double().flatten(2), masks[name].double().flatten(2)
        weight = (~left_out[name]).double().unsqueeze(2) if name in left_out else torch.ones_like(wanted[..., :1])
        known[name] = (wanted - wanted.mean()) * weight
        found[name] = mask - mask.mean()
    orders = [_assign(_invariant_likeness(group, names, groups, known, found)) for group in range(len(sizes))]
    for _ in range(MOST_ROUNDS):
        before = [order.clone() for order in orders]
        for group in range(len(sizes)):
            orders[group] = _assign(_likeness(group, names, groups, orders, known, found))
        if all(map(torch.equal, before, orders)):
            break
    aligned = {name: mask.clone() for name, mask in masks.items()}
    for name in names:
        filters, channels = groups[name]
        aligned[name] = masks[name][orders[filters]][:, orders[channels]]
    return aligned


def _groups(masks: Mapping[str, Tensor]) -> tuple[dict[str, tuple[int, int]], list[int]]:
    """For each layer the trunks of its filters and of its input channels, and the width of each trunk."""
    sizes: list[int] = []
    groups = {}
    current = -1
    for name, mask in masks.items():
        filters, channels = mask.shape[:2]
        if current < 0 or sizes[current] != channels:
            sizes.append(channels)
            current = len(sizes) - 1
        source = current
        if filters != channels:
            sizes.append(filters)
            current = len(sizes) - 1
        groups[name] = (current, source)
    return groups, sizes


def _invariant_likeness(
    group: int,
    names: list[str],
    groups: dict[str, tuple[int, int]],
    known: dict[str, Tensor],
    found: dict[str, Tensor],
) -> Tensor:
    """How alike two channels are in what no order changes: their sums over the other channels, and the diagonal."""
    features: list[tuple[Tensor, Tensor]] = []
    for name in names:
        pair = (known[name], found[name])
        filters, channels = groups[name]
        if filters == group:
            features.append((pair[0].sum(1), pair[1].sum(1)))
        if channels == group:
            features.append((pair[0].sum(0), pair[1].sum(0)))
        if filters == channels == group:
            size = 3.0 * pair[0].shape[0] ** 0.5
            features.append((size * pair[0].diagonal().t(), size * pair[1].diagonal().t()))
    left, right = (torch.cat([feature[i] for feature in features], 1) for i in (0, 1))
    return -torch.cdist(left, right)


def _likeness(
    group: int,
    names: list[str],
    groups: dict[str, tuple[int, int]],
    orders: list[Tensor],
    known: dict[str, Tensor],
    found: dict[str, Tensor],
) -> Tensor:
    """How well each channel of the masks would do in each place, the other channels being where they are now."""
    likeness = torch.zeros(1, dtype=torch.float64)
    for name in names:
        filters, channels = groups[name]
        if filters == group:
            likeness = likeness + known[name].flatten(1) @ found[name][:, orders[channels]].flatten(1).t()
        if channels == group:
            rows = found[name][orders[filters]]
            likeness = likeness + known[name].transpose(0, 1).flatten(1) @ rows.transpose(0, 1).flatten(1).t()
    return likeness


def _assign(likeness: Tensor) -> Tensor:
    """For each place the channel that belongs there, so that the sum over all is the greatest."""
    from scipy.optimize import linear_sum_assignment

    _, channels = linear_sum_assignment(likeness.numpy(), maximize=True)
    return torch.as_tensor(channels)
