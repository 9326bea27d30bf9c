"""Latent weight -> standardise -> binarise -> mask -> gain, and back, from the weight and five numbers a row.

The formulas are those of `bnfree.convolution`; a row is one filter of n surviving weights, and
norm = sqrt(n) * max(std, 1e-15):

    value = (w - centre) / divisor,   divisor = norm + eps * sqrt(n)
    dL/dw = h / divisor - (w - centre) * curvature * sum(h * (w - centre)) - share * sum(h) / divisor

where h = dL/dvalue, curvature = 1 / (divisor^2 * norm) and share = 1 / n. Rows that are not
standardised (plain weights, survivors that are all equal) have centre, curvature and share 0. A binary weight is
scale * sign(value) with scale = mean|value|, a constant; through it h is the gradient of the sign, divided by the scale
and cut off where |value| > 1, or, with an estimator, times slope(sqrt(n) * value).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bnfree.lean.blocks import part, row_blocks

SMALLEST_ROOT = 1e-15


class WeightRule(NamedTuple):
    """The switches of a `BinaryConv2d`."""

    binary: bool
    standardize: bool
    eps: float
    slope: Callable[[Tensor], Tensor] | None = None
    """Derivative that stands for that of the sign of binary weights; None: 1 where |value| <= 1."""


class PreparedWeight(NamedTuple):
    """What the convolution uses."""

    values: Tensor
    """(O, I, kH, kW): signs, 0 where masked; or real weights with gain."""
    scale: Tensor | None
    """(O,), scale times gain of binary weights, to be applied after the convolution; None with real weights."""
    moments: Tensor
    """(5, O): centre, divisor, curvature, share, scale of each row."""


def prepare(weight: Tensor, gain: Tensor | None, mask: Tensor | None, rule: WeightRule) -> PreparedWeight:
    """Values, scale and moments of a latent weight (O, I, kH, kW)."""
    rows, kept = _rows_of(weight, mask)
    blocks = row_blocks(len(rows), rows.shape[1], weight.device)
    values = None if len(blocks) == 1 else torch.empty_like(rows)
    moments = []
    for block in blocks:
        survivors = part(kept, block)
        centred, block_moments = _centre(part(rows, block), survivors, rule)
        if rule.binary:
            count = centred.shape[1] if survivors is None else survivors.sum(1).clamp(min=1)
            block_moments.append(centred.abs().sum(1).div_(block_moments[1] * count))
            value = _signs(centred)
            if survivors is not None:
                value.mul_(survivors)
        else:
            block_moments.append(torch.zeros_like(block_moments[0]))
            value = centred.div_(block_moments[1].unsqueeze(1))
            if gain is not None:
                value.mul_(part(gain.view(-1, 1), block))
        moments.append(torch.stack(block_moments))
        values = _put(values, block, value)
    assert values is not None
    all_moments = moments[0] if len(moments) == 1 else torch.cat(moments, 1)
    scale = None
    if rule.binary:
        scale = all_moments[4] if gain is None else all_moments[4] * gain.view(-1)
    return PreparedWeight(_unmatrix(values, weight), scale, all_moments)


def rebuild(
    weight: Tensor, gain: Tensor | None, mask: Tensor | None, moments: Tensor, rule: WeightRule, factor: float = 1.0
) -> Tensor:
    """Factor * effective weight (O, I, kH, kW), from the moments."""
    rows, kept = _rows_of(weight, mask)
    blocks = row_blocks(len(rows), rows.shape[1], weight.device)
    values = None if len(blocks) == 1 else torch.empty_like(rows)
    multiplier = moments[4] if rule.binary else 1 / moments[1]
    multiplier = (multiplier * factor if gain is None else multiplier * gain.view(-1) * factor).unsqueeze(1)
    centre = moments[0].unsqueeze(1)
    for block in blocks:
        survivors = part(kept, block)
        value = _centred(part(rows, block), survivors, part(centre, block), rule)
        if rule.binary:
            value = _signs(value)
            if survivors is not None:
                value.mul_(survivors)
        value.mul_(part(multiplier, block))
        values = _put(values, block, value)
    assert values is not None
    return _unmatrix(values, weight)


def gradients(
    effective: Tensor,
    weight: Tensor,
    gain: Tensor | None,
    mask: Tensor | None,
    moments: Tensor,
    rule: WeightRule,
    factor: float = 1.0,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of latent weight and gain.

    Args:
        effective: gradient (O, I, kH, kW) of factor * effective weight.
        weight: latent weight.
        gain: (O, 1, 1, 1) or None.
        mask: bool, or None.
        moments: those of `prepare`.
        rule: switches of the layer.
        factor: what the effective weight was multiplied by.
    """
    rows, kept = _rows_of(weight, mask)
    incoming = _matrix(effective, weight).to(rows.dtype)
    centre, divisor, curvature, share, scale = moments.unsqueeze(2)
    # A standardised row without a mask stays below 1.
    slope = rule.slope if rule.binary else None
    window = rule.binary and slope is None and (not rule.standardize or mask is not None or rows.shape[1] == 1)
    strength = torch.full_like(divisor, factor) if gain is None else gain.view(-1, 1) * factor
    if rule.binary:
        strength = strength * scale.sign()
    inward = strength / divisor
    if rule.standardize:
        bend, share = strength * curvature, inward * share
    blocks = row_blocks(len(rows), rows.shape[1], weight.device)
    results = None if len(blocks) == 1 else torch.empty_like(rows)
    grad_gain = []
    for block in blocks:
        h, survivors = part(incoming, block), part(kept, block)
        if survivors is not None:
            h = h * survivors
        centred = _centred(part(rows, block), survivors, part(centre, block), rule)
        if gain is not None:
            grad_gain.append((_signs(centred.clone()).mul_(h) if rule.binary else centred * h).sum(1))
        if window:
            h = h * (centred / part(divisor, block)).abs_().le_(1)
        if slope is not None:
            count = rows.shape[1] if survivors is None else survivors.sum(1, keepdim=True).clamp(min=1)
            h = h * slope(centred / part(divisor, block) * count**0.5)
        result = h * part(inward, block)
        if rule.standardize:
            inner = (h * centred).sum(1, keepdim=True).mul_(part(bend, block))
            result.addcmul_(centred, inner, value=-1).sub_(h.sum(1, keepdim=True).mul_(part(share, block)))
            if survivors is not None:
                result.mul_(survivors)
        results = _put(results, block, result)
    assert results is not None
    gain_gradient = None
    if gain is not None:
        sums = grad_gain[0] if len(grad_gain) == 1 else torch.cat(grad_gain)
        by = scale if rule.binary else 1 / divisor
        gain_gradient = (sums.unsqueeze(1) * by * factor).view_as(gain).to(gain.dtype)
    return _unmatrix(results, weight).to(weight.dtype), gain_gradient


def _centre(rows: Tensor, kept: Tensor | None, rule: WeightRule) -> tuple[Tensor, list[Tensor]]:
    """The centred rows, new memory, 0 where masked; and centre, divisor, curvature, share of each."""
    size = rows.shape[1]
    if not rule.standardize or (kept is None and size == 1):
        zero, one = rows.new_zeros(len(rows)), rows.new_ones(len(rows))
        divisor = one + rule.eps if rule.standardize else one
        return (rows.clone() if kept is None else rows * kept), [zero, divisor, zero, zero]
    if kept is None:
        centre = rows.mean(1)
        centred = rows - centre.unsqueeze(1)
        smallest = SMALLEST_ROOT * size**0.5
        norm = _norms(centred)
        divisor = norm.clamp(min=smallest).add_(rule.eps * size**0.5)
        # Rows without a spread have the curvature 0.
        curvature = torch.threshold(norm, smallest, torch.inf).mul_(divisor).mul_(divisor).reciprocal_()
        return centred, [centre, divisor, curvature, torch.full_like(centre, 1 / size)]
    # In double precision, so that a mask that masks nothing changes no bit.
    count = kept.sum(1).clamp(min=1).to(torch.float64)
    width = count.sqrt()
    smallest, margin, largest = (
        (factor * width).to(rows.dtype) for factor in (SMALLEST_ROOT, rule.eps, 8 * torch.finfo(rows.dtype).eps)
    )
    count, width = count.to(rows.dtype), width.to(rows.dtype)
    surviving = rows * kept
    centre = surviving.sum(1) / count
    centred = (surviving - centre.unsqueeze(1)).mul_(kept)
    norm = _norms(centred)
    # Rows of equal survivors are not centred: their mean would erase them.
    flat = norm <= largest * centre.abs()
    centre = centre.masked_fill(flat, 0)
    norm = torch.where(flat, width, norm)
    centred = surviving.sub_(centre.unsqueeze(1)).mul_(kept)
    divisor = norm.maximum(smallest).add_(margin)
    bent = ~flat & (norm > smallest)
    curvature = norm.masked_fill(~bent, torch.inf).mul_(divisor).mul_(divisor).reciprocal_()
    return centred, [centre, divisor, curvature, ~flat / count]


def _norms(rows: Tensor) -> Tensor:
    """Norm of each row; NaN where finite squares overflow, since all divided by an infinity would silently be 0."""
    norms = torch.linalg.vector_norm(rows, dim=1)
    return norms.masked_fill_(norms == torch.inf, torch.nan)


def _centred(rows: Tensor, kept: Tensor | None, centre: Tensor, rule: WeightRule) -> Tensor:
    """What `_centre` gives, from the centre (O, 1)."""
    if not rule.standardize:
        return rows.clone() if kept is None else rows * kept
    centred = rows - centre
    return centred if kept is None else centred.mul_(kept)


def _signs(x: Tensor) -> Tensor:
    """In the memory of `x`: +1 where it is at least 0, else -1."""
    return torch.threshold_(x.ge_(0), 0, -1)


def _put(target: Tensor | None, block: slice, value: Tensor) -> Tensor:
    if target is None:
        return value
    part(target, block).copy_(value)
    return target


def _rows_of(weight: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weight, at least in float32, and mask as matrices with a filter in each row."""
    rows = _matrix(weight, weight)
    if weight.dtype not in (torch.float32, torch.float64):
        rows = rows.float()
    return rows, None if mask is None else _matrix(mask, weight)


def as_rows(weight: Tensor) -> Tensor:
    """Filters as rows, in the order in which the weight lies in memory."""
    return _matrix(weight.detach(), weight)


def _matrix(x: Tensor, weight: Tensor) -> Tensor:
    if weight.is_contiguous() or not weight.is_contiguous(memory_format=torch.channels_last):
        return x.flatten(1)
    return x.permute(0, 2, 3, 1).reshape(len(x), -1)


def _unmatrix(rows: Tensor, weight: Tensor) -> Tensor:
    if weight.is_contiguous():
        # Along axes of size 1 strides are free, and data-parallel training wants those of the parameter.
        matrix = rows.view(weight.shape)
        return matrix if matrix.stride() == weight.stride() else matrix.as_strided(weight.shape, weight.stride())
    if not weight.is_contiguous(memory_format=torch.channels_last):
        return rows.view(weight.shape)
    channels, height, width = weight.shape[1:]
    return rows.view(-1, height, width, channels).permute(0, 3, 1, 2)
