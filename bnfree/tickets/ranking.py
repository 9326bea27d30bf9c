"""Exact counts: which units are kept when so many weights are to survive, whatever the ties.

A threshold prunes every weight that equals it, which is most of a layer whose latent weights have been clipped to +-1.
Here the number of survivors is given. Among equal scores the order is a fixed one, the same in every process and on
every machine: that of the golden-ratio sequence of their indices, in which any part of the list is spread evenly over
the whole. Ties therefore neither empty the last layers nor favour the first filters.
"""

from __future__ import annotations

import torch
from torch import Tensor

# 2^32 divided by the golden ratio; odd, so that no two indices below 2^32 share a key.
GOLDEN_STEP = 0x9E3779B1


def tie_keys(first: int, count: int, device: torch.device | None = None) -> Tensor:
    """Ranks among equal scores, int64 (count,), the smallest is kept first.

    Args:
        first: index of the first unit, counted over all layers.
        count: number of units.
        device: where they are made; None: the CPU.
    """
    return torch.arange(first, first + count, device=device or "cpu") * GOLDEN_STEP % 2**32


def keep_highest(scores: Tensor, keys: Tensor, quota: int, sizes: Tensor | None = None) -> Tensor:
    """Keeps the units with the highest scores.

    Args:
        scores: float (n,), no NaN.
        keys: int64 (n,), distinct; among equal scores the lower key wins.
        quota: number of weights to keep.
        sizes: int64 (n,), weights in each unit; None: one in each.

    Returns:
        bool (n,). Without sizes exactly `quota` are True (all, where there are fewer). With sizes, units are kept in
        the order of their scores as long as they fit, one that does not fit is left out and the next is tried: never
        more than `quota` weights, and fewer only by less than the smallest unit left out.
    """
    if sizes is not None:
        return _keep_what_fits(scores, keys, quota, sizes)
    if quota >= len(scores):
        return torch.ones_like(scores, dtype=torch.bool)
    if quota <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(len(scores) - quota + 1).values
    kept = scores > threshold
    tied = (scores == threshold).nonzero().flatten()
    kept[tied[keys[tied].argsort()[: quota - int(kept.sum())]]] = True
    return kept


def rank_in_rows(scores: Tensor, keys: Tensor) -> Tensor:
    """Ranks within each row, 0 for the highest score, ties by key: float and int64 (rows, n) to int64 (rows, n)."""
    by_key = keys.argsort(dim=1)
    by_score = scores.gather(1, by_key).argsort(dim=1, descending=True, stable=True)
    order = by_key.gather(1, by_score)
    ranks = torch.empty_like(order)
    return ranks.scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))


def _keep_what_fits(scores: Tensor, keys: Tensor, quota: int, sizes: Tensor) -> Tensor:
    by_key = keys.argsort()
    order = by_key[scores[by_key].argsort(descending=True, stable=True)]
    ordered = sizes[order].tolist()
    fits, left = [], quota
    for size in ordered:
        fits.append(size <= left)
        left -= size if size <= left else 0
    kept = torch.zeros_like(scores, dtype=torch.bool)
    kept[order] = torch.tensor(fits, dtype=torch.bool)
    return kept
