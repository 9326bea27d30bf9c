"""The convolution with its weight path as one step: keeps input, parameters and five numbers a filter.

`convolve` and `convolution_gradients` are the only places where the lean path multiplies matrices.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bnfree.autocast import autocast_dtype
from bnfree.lean import weights
from bnfree.lean.function import Function, as_output
from bnfree.lean.geometry import Geometry
from bnfree.lean.refusal import once
from bnfree.lean.weights import PreparedWeight, WeightRule


def convolve(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Convolution of `x` (N, I, H, W), both of one dtype; no channels where there are no filters."""
    if len(weight) == 0:
        sides = zip(x.shape[2:], weight.shape[2:], strict=True)
        sizes = [(size + 2 * geometry.padding - kernel) // geometry.stride + 1 for size, kernel in sides]
        return x.new_empty(len(x), 0, *sizes)
    return F.conv2d(x, weight, None, geometry.stride, geometry.padding, 1, geometry.groups)


def is_narrow(x: Tensor, stride: int, dtype: torch.dtype) -> bool:
    """Whether a convolution of an input like `x` in `dtype` must be differentiated in float32.

    In 16 bits, oneDNN leaves a part of the weights' gradient unwritten where a step is wider than the input, as with
    stride 2 at 1x1: what happened to be in memory (torch 2.11 to 2.14).
    """
    return x.device.type == "cpu" and dtype in (torch.bfloat16, torch.float16) and x.shape[-1] < stride


def convolution_gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, need_x: bool, need_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `x` and of `weight` for that of the output, all of one dtype."""
    if not need_x and not need_weight:
        return None, None
    if len(weight) == 0:
        return torch.zeros_like(x) if need_x else None, torch.zeros_like(weight) if need_weight else None
    if is_narrow(x, geometry.stride, x.dtype):
        wide = [tensor.to(torch.float32) for tensor in (gradient, x, weight)]
        of_x, of_weight = convolution_gradients(wide[0], wide[1], wide[2], geometry, need_x, need_weight)
        return None if of_x is None else of_x.to(x.dtype), None if of_weight is None else of_weight.to(x.dtype)
    results = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, [geometry.stride] * 2, [geometry.padding] * 2, [1, 1], False, [0, 0],
        geometry.groups, [need_x, need_weight, False],
    )  # fmt: skip
    return results[0] if need_x else None, results[1] if need_weight else None


def compute_dtype(x: Tensor) -> torch.dtype:
    """In which dtype a convolution of `x` is computed: that of autocast, or its own."""
    dtype = autocast_dtype(x.device)
    return x.dtype if dtype is None or x.dtype == torch.float64 else dtype


def small_power(weight: Tensor, dtype: torch.dtype) -> float:
    """A power of two near 1 / sqrt(fan-in) in float16, whose range the gradient of a bare sign could leave; else 1."""
    return 2.0 ** -round(weight.shape[1:].numel().bit_length() / 2) if dtype == torch.float16 else 1.0


class LeanEffectiveWeight(Function):
    """Latent weight and gain to effective weight; keeps the parameters and the moments."""

    @staticmethod
    def forward(weight: Tensor, gain: Tensor | None, mask: Tensor | None, rule: WeightRule) -> tuple[Tensor, Tensor]:
        """The effective weight (O, I, kH, kW), and the moments."""
        values, scale, moments = weights.prepare(weight, gain, mask, rule)
        if scale is not None:
            values.mul_(scale.view(-1, 1, 1, 1))
        return as_output(values.to(weight.dtype)), moments

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keeps the parameters and the moments."""
        weight, gain, mask, ctx.rule = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(weight, gain, mask, output[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of weight and gain."""
        weight, gain, mask, moments = ctx.saved_tensors
        with torch.no_grad():
            grad_weight, grad_gain = weights.gradients(gradient, weight, gain, mask, moments, ctx.rule)
        return once(gradient, [grad_weight, grad_gain, None, None])


def convolve_prepared(x: Tensor, prepared: PreparedWeight, geometry: Geometry, dtype: torch.dtype) -> Tensor:
    """The convolution with a prepared weight; binary weights are scaled afterwards, in the dtype of `x`."""
    output = convolve(x.to(dtype), prepared.values.to(dtype), geometry)
    if prepared.scale is None:
        return output
    return output.to(torch.promote_types(dtype, x.dtype)).mul_(prepared.scale.view(1, -1, 1, 1).to(x.dtype))


class LeanConvolution(Function):
    """Input, latent weight and gain to the output; keeps the input, the parameters and the moments."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, gain: Tensor | None, mask: Tensor | None, rule: WeightRule, geometry: Geometry
    ) -> tuple[Tensor, Tensor]:
        """The output (N, O, H', W'), and the moments."""
        prepared = weights.prepare(weight, gain, mask, rule)
        return as_output(convolve_prepared(x, prepared, geometry, compute_dtype(x))), prepared.moments

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keeps input, parameters and moments."""
        x, weight, gain, mask, ctx.rule, ctx.geometry = inputs
        ctx.dtype = compute_dtype(x)
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, weight, gain, mask, output[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight and gain."""
        x, weight, gain, mask, moments = ctx.saved_tensors
        grad_x: Tensor | None
        grad_weight: Tensor | None
        grad_gain: Tensor | None
        with torch.no_grad():
            power = small_power(weight, ctx.dtype) if ctx.rule.binary else 1.0
            incoming = gradient.to(ctx.dtype) if power == 1 else (gradient * power).to(ctx.dtype)
            full = weights.rebuild(weight, gain, mask, moments, ctx.rule, 1 / power).to(ctx.dtype)
            needs = ctx.needs_input_grad[0], ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
            grad_x, grad_full = convolution_gradients(incoming, x.to(ctx.dtype), full, ctx.geometry, *needs)
            grad_x = None if grad_x is None else grad_x.to(x.dtype)
            grad_weight = grad_gain = None
            if grad_full is not None:
                grad_weight, grad_gain = weights.gradients(grad_full, weight, gain, mask, moments, ctx.rule, 1 / power)
        return once(gradient, [grad_x, grad_weight, grad_gain, None, None, None])
