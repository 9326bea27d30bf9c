"""Scaled weight standardisation, and the sign of weights with its gradient, as compositions of operators.

They define what `bnfree.lean.weights` computes in one step; sources and deviations in `bnfree.convolution`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bnfree.lean.function import as_output


class WeightSign(torch.autograd.Function):
    """sign(w), sign(0) = +1, for weights that are multiplied by `scale` afterwards.

    With the product `scale * sign(w)` in mind its backward is the identity through clamp(w, -1, 1), without the scale:
    the gradient that arrives here, which the product has multiplied by the scale, is divided by it again. With a slope,
    that of an estimator, it is multiplied by slope(root * w) in place of the clamp.
    """

    # For gradients of single images by `torch.func.vmap`.
    generate_vmap_rule = True

    @staticmethod
    def forward(
        weight: Tensor,
        scale: Tensor,
        slope: Callable[[Tensor], Tensor] | None = None,
        root: Tensor | float = 1.0,
    ) -> Tensor:
        """`weight` (O, I, kH, kW), `scale` (O, 1, 1, 1), at least 0; `root` a number or (O, 1, 1, 1)."""
        return as_output((weight >= 0).to(weight.dtype).mul_(2).sub_(1))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """The gradient needs to know where |w| <= 1."""
        weight, scale, *more = inputs
        ctx.slope, ctx.root = more or (None, 1.0)
        ctx.save_for_backward(weight, scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The scale is a constant of the method (detached), so it has no gradient."""
        weight, scale = ctx.saved_tensors
        # A filter of scale 0 gives nothing and gets nothing; the inverse of a subnormal scale overflows.
        inverse = 1 / scale
        divided = torch.where(inverse < torch.inf, gradient * inverse, gradient / scale)
        through = weight.abs() <= 1 if ctx.slope is None else ctx.slope(weight * ctx.root)
        return torch.where(scale > 0, divided, 0.0) * through, None, None, None


def standardize_weight(weight: Tensor, mask: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Scaled weight standardisation: (w - mean) / ((std + eps) * sqrt(k)) per output filter.

    Mean, population std and k (the fan-in) are taken over the surviving weights. Where a mask leaves a filter without
    variance, it keeps mean 0 and std 1: a single survivor, or equal ones, as among latent weights that were clipped to
    +-1, would be erased by their own mean, and the layer would be sparser than its mask.

    Args:
        weight: latent weight (O, I, kH, kW), floating point.
        mask: same shape, bool, True where a weight survives; None when dense.
        eps: added to the std.

    Returns:
        Same shape and dtype; 0 where masked. Filters whose squares overflow (weights from some 1e18 on in float32) are
        NaN, and not silently 0.
    """
    dims = tuple(range(1, weight.dim()))
    if mask is None:
        fan_in = weight.shape[1:].numel()
        centred = weight - weight.mean(dims, keepdim=True)
        variance = centred.square().mean(dims, keepdim=True)
        return centred / ((_root(variance) + eps) * fan_in**0.5) if fan_in > 1 else weight / (1 + eps)
    survivors = mask.sum(dims, keepdim=True).to(weight.dtype)
    count = survivors.clamp(min=1)
    kept = weight * mask
    mean = kept.sum(dims, keepdim=True) / count
    centred = (kept - mean) * mask
    variance = centred.square().sum(dims, keepdim=True) / count
    # Of equal weights, what the rounding of their mean leaves.
    flat = (variance <= (8 * torch.finfo(weight.dtype).eps * mean).square()) & (variance < torch.inf)
    return torch.where(flat, kept, centred) / ((_root(variance.masked_fill(flat, 1)) + eps) * count.sqrt())


def _root(variance: Tensor) -> Tensor:
    # A filter of equal weights has variance 0, where the root's derivative is infinite and would give NaN gradients.
    # Where squares overflow, all divided by an infinity would silently be 0.
    return variance.masked_fill(variance == torch.inf, torch.nan).clamp(min=1e-30).sqrt()
