"""Prepared weights that evaluation keeps until the parameters change."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bnfree.lean.weights import PreparedWeight, WeightRule, as_rows, prepare


class KeptWeight(NamedTuple):
    """A prepared weight with what it was prepared from."""

    key: tuple[Any, ...]
    traces: list[Tensor]
    prepared: PreparedWeight


def prepare_or_reuse(
    kept: KeptWeight | None, weight: Tensor, gain: Tensor | None, mask: Tensor | None, rule: WeightRule
) -> tuple[PreparedWeight, KeptWeight | None]:
    """The prepared weight, and what to keep for the next call (None where nothing can be kept).

    A kept weight is used again if no tensor was replaced or counted a change (PyTorch's version counters), and their
    contents leave the same traces. The traces are for writes through `.data`, as of callbacks that swap averaged
    weights, which PyTorch does not count: a random linear function of every filter, the gains and the mask. What
    changes a filter by less than the rounding of that sum may go unnoticed. They cost a fifth of the preparation.

    On accelerators, where comparing traces would wait for the device in each layer, and under transformations of
    `torch.func` nothing is kept.
    """
    # What only the backward pass needs is no part of the key: two slopes are never equal.
    key = _key(weight, gain, mask, rule._replace(slope=None))
    if key is None:
        return prepare(weight, gain, mask, rule), None
    traces = [as_rows(weight).mv(_random_vector(weight.shape[1:].numel(), weight.dtype))]
    traces += [tensor.detach() for tensor in (gain, mask) if tensor is not None]
    if kept is None or kept.key != key or not all(map(torch.equal, kept.traces, traces)):
        kept = KeptWeight(key, [trace.clone() for trace in traces], prepare(weight, gain, mask, rule))
    return kept.prepared, kept


def _key(weight: Tensor, gain: Tensor | None, mask: Tensor | None, rule: WeightRule) -> tuple[Any, ...] | None:
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.float64):
        return None
    tensors = [tensor for tensor in (weight, gain, mask) if tensor is not None]
    try:
        return rule, *((t.data_ptr(), t._version, t.dtype, t.shape, t.stride()) for t in tensors)
    except RuntimeError:
        # Wrapped by a transformation, or made in inference mode.
        return None


@cache
def _random_vector(size: int, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=dtype)
