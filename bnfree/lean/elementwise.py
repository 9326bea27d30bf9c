"""The elementwise halves of a step of the chain: what comes before its convolution, after it, and back through both."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bnfree.lean import kernels
from bnfree.lean.activations import channel_sum, presign, rprelu, rprelu_gradients, signs
from bnfree.lean.blocks import Planes, part, put, slot
from bnfree.lean.derivative import Derivative
from bnfree.lean.geometry import Geometry
from bnfree.lean.weights import WeightRule


class UnitRule(NamedTuple):
    """How a unit computes."""

    derivative: Derivative
    """Of the sign."""
    weight: WeightRule
    geometry: Geometry
    alpha: float
    residual: bool
    """Whether the shortcut is part of the step; without it the result is alpha * conv(s)."""
    pool: bool
    repeats: int
    projection: WeightRule | None
    fast: tuple[str, ...]
    """Names of `bnfree.lean.fast.FAST_MODES`."""
    channels: int
    """Of the output."""


class Entry(NamedTuple):
    """The parameters before the convolution."""

    shift_in: Tensor | None
    slope: Tensor | None
    shift_out: Tensor | None
    """Of the RPReLU of the unit before, (C,); None where the input is no pre-activation."""
    shift: Tensor
    """Of RSign, (C,)."""
    beta: Tensor | None
    """Shape ()."""


def enter(
    u: Tensor,
    planes: Planes,
    entry: Entry,
    rule: UnitRule,
    with_shortcut: bool,
    magnitude: float = 1.0,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The signs, and the shortcut before its projection where it is not x itself.

    Args:
        u: input of the step.
        planes: its blocks.
        entry: parameters.
        rule: of the unit.
        with_shortcut: whether the shortcut is wanted.
        magnitude: of the signs, in place of 1.
        dtype: of the signs; uint8 for 2 in place of 1 and 0 in place of -1; by default that of `u`.
    """
    dtype = dtype or u.dtype
    with_shortcut = with_shortcut and (rule.pool or rule.repeats > 1 or rule.projection is not None)
    height, width = ((size + 1) // 2 if rule.pool else size for size in u.shape[2:])
    shape = (*u.shape[:2], height, width)
    if kernels.applies(u, *entry[:4]):
        shortcut = u.new_empty(shape) if with_shortcut else None
        return kernels.enter(u, entry[:3], entry.shift, entry.beta, magnitude, dtype, shortcut, rule.pool), shortcut
    parameters = _parameters(planes, entry, u)
    threshold = planes.per_channel(-entry.shift)
    assert threshold is not None
    source, s = planes.view(u), planes.empty(u, dtype=dtype)
    shortcut = planes.empty(u, *shape) if with_shortcut else None
    for block in planes.blocks:
        x = part(source, block, 1)
        if parameters[0] is not None:
            _, x = rprelu(x, *(part(p, block, 1) for p in parameters))
        memory = slot(s, block, dtype)
        s = put(s, block, signs(x, part(threshold, block, 1), entry.beta, dtype, magnitude, memory), memory=memory)
        if with_shortcut:
            if rule.pool:
                x = _pool(x if entry.beta is None else x * entry.beta.to(x.dtype))
            shortcut = put(shortcut, block, x)
    assert s is not None
    return s.view(u.shape), None if shortcut is None else shortcut.view(shape)


def combine(
    u: Tensor, planes: Planes, entry: Entry, y: Tensor, scale: Tensor | None, shortcut: Tensor | None
) -> Tensor:
    """Shortcut + scale * y in the memory of `y`; where the shortcut is x itself, it is computed once more."""
    if shortcut is None and kernels.applies(u, *entry[:3], y, scale):
        return kernels.combine(u, entry[:3], y, scale)
    if shortcut is not None and kernels.applies(y, shortcut, scale):
        return kernels.combine(shortcut, (), y, scale)
    out = Planes(y)
    if shortcut is not None and out.whole:
        return (y if scale is None else y.mul_(scale.view(1, -1, 1, 1))).add_(shortcut)
    if shortcut is None and out.whole != planes.whole:
        # A convolution that has given another memory format than it got.
        _, shortcut = (None, u) if entry.slope is None else rprelu(u, *_whole_parameters(entry, u))
        return (y if scale is None else y.mul_(scale.view(1, -1, 1, 1))).add_(shortcut)
    scales = out.per_channel(scale)
    parameters = _parameters(out, entry, u) if shortcut is None else [None]
    source, target = out.view(u if shortcut is None else shortcut), out.view(y)
    for block in out.blocks:
        x = part(source, block, 1)
        if shortcut is None and parameters[0] is not None:
            _, x = rprelu(x, *(part(p, block, 1) for p in parameters))
        place = part(target, block, 1)
        if scales is not None:
            place.mul_(part(scales, block, 1))
        place.add_(x)
    return y


def leave(
    u: Tensor, planes: Planes, entry: Entry, rule: UnitRule, grad_s: Tensor, grad_shortcut: Tensor | None
) -> tuple[Tensor, list[Tensor | None]]:
    """Gradients of u, which may be in the memory of `grad_s`, and of the entry's parameters."""
    grad_s, grad_shortcut = grad_s.to(u.dtype), _cast(grad_shortcut, u)
    if kernels.applies(u, *entry[:4], grad_s, grad_shortcut) and rule.derivative.has_kernel():
        totals = kernels.leave(
            u, entry[:3], entry.shift, entry.beta, rule.derivative, grad_s, grad_shortcut, grad_s, rule.pool
        ).unbind()
        return grad_s, [*([None] * 3 if entry.slope is None else totals[:3]), totals[3]]
    parameters = _parameters(planes, entry, u)
    shift = planes.per_channel(entry.shift)
    assert shift is not None
    source, outgoing = planes.view(u), planes.view(grad_s)
    residual = None if grad_shortcut is None else planes.view(grad_shortcut)
    target = None if planes.whole else outgoing
    blocks = []
    beta = entry.beta
    for block in planes.blocks:
        memory = None
        t = x = part(source, block, 1)
        if parameters[0] is not None:
            t, x = rprelu(x, *(part(p, block, 1) for p in parameters))
        v = presign(x, part(shift, block, 1), beta)
        grad_x = rule.derivative.slope(v) * part(outgoing, block, 1)
        sums = [channel_sum(grad_x)]
        grad_x = grad_x.to(u.dtype) if beta is None else grad_x.mul_(beta).to(u.dtype)
        if residual is not None:
            back = part(residual, block, 1)
            if rule.pool:
                back = _pool_gradient(back, x)
                back = back if beta is None else back.mul_(beta.to(back.dtype))
            grad_x.add_(back)
        if parameters[1] is not None:
            memory = slot(target, block, grad_x.dtype)
            grad_x, grad_rprelu = rprelu_gradients(t, grad_x, part(parameters[1], block, 1), memory)
            sums = grad_rprelu + sums
        blocks.append(sums)
        target = put(target, block, grad_x, memory=memory)
    assert target is not None
    grad_parameters = [total.to(entry.shift.dtype) for total in planes.channel_sums(blocks)]
    return target.view(u.shape), [*[None] * (4 - len(grad_parameters)), *grad_parameters]


def _cast(parameter: Tensor | None, like: Tensor) -> Tensor | None:
    return parameter if parameter is None or parameter.dtype == like.dtype else parameter.to(like.dtype)


def _parameters(planes: Planes, entry: Entry, like: Tensor) -> list[Tensor | None]:
    """Those of the RPReLU, as blocks see them."""
    if entry.slope is None:
        return [None] * 3
    return [planes.per_channel(_cast(p, like)) for p in entry[:3]]


def _whole_parameters(entry: Entry, like: Tensor) -> list[Tensor]:
    return [p.to(like.dtype).view(1, -1, 1, 1) for p in entry[:3] if p is not None]


def _pool(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2, 2, ceil_mode=True)


def _pool_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    return torch.ops.aten.avg_pool2d_backward(gradient, x, [2, 2], [2, 2], [0, 0], True, True, None)
