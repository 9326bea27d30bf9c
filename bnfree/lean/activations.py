"""RSign and RPReLU with gradients that recompute: one tensor kept, no masks.

RPReLU   t = x + shift_in,  y = max(t, 0) + slope * min(t, 0) + shift_out
RSign    v = beta * x + shift,  s = sign(v), with the derivative of an estimator
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bnfree.lean import kernels
from bnfree.lean.blocks import Planes, part, put, slot
from bnfree.lean.derivative import Derivative
from bnfree.lean.function import Function, as_output
from bnfree.lean.refusal import once


def rprelu(x: Tensor, shift_in: Tensor, slope: Tensor, shift_out: Tensor) -> tuple[Tensor, Tensor]:
    """The pair t and y of RPReLU; `x` (1 or N, C, H, W), parameters (1, C, 1, 1) of the same dtype."""
    t = x + shift_in
    return t, F.prelu(t, slope.view(-1)).add_(shift_out)


def rprelu_gradients(
    t: Tensor, gradient: Tensor, slope: Tensor, memory: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Gradient of x, in `memory` if given, and those of shift_in, slope and shift_out, (C,) each; `t` is used up."""
    positive = torch.ops.aten.threshold_backward(gradient, t, 0)
    negative = gradient - positive
    grad_slope = channel_sum(t.mul_(negative))
    grad_x = torch.add(negative.mul_(slope), positive, out=memory)
    return grad_x, [channel_sum(grad_x), grad_slope, channel_sum(gradient)]


def presign(x: Tensor, shift: Tensor, beta: Tensor | None) -> Tensor:
    """The sum v = beta * x + shift in the wider dtype of both, new memory."""
    wide = torch.promote_types(x.dtype, shift.dtype)
    return x.to(wide) + shift if beta is None else (x.to(wide) * beta).add_(shift)


def signs(
    x: Tensor,
    threshold: Tensor,
    beta: Tensor | None,
    dtype: torch.dtype,
    magnitude: float = 1.0,
    memory: Tensor | None = None,
) -> Tensor:
    """+magnitude where beta * x >= threshold, else -magnitude; in uint8 2 and 0.

    A sum of two numbers is rounded to 0 only where it is 0, so that this is the sign of `presign` for minus its shift.

    Args:
        x: (1 or N, C, H, W).
        threshold: (1, C, 1, 1).
        beta: () or None for 1.
        dtype: of the result.
        magnitude: of the result.
        memory: for the result, of `dtype`.
    """
    scaled = x if beta is None else x.to(torch.promote_types(x.dtype, threshold.dtype)) * beta
    if torch.compiler.is_compiling():
        above = torch.ge(scaled, threshold).to(dtype)
    else:
        above = torch.ge(scaled, threshold, out=torch.empty_like(x, dtype=dtype) if memory is None else memory)
    if dtype == torch.uint8:
        return above.mul_(2)
    torch.threshold_(above, 0, -1)
    return above if magnitude == 1 else above.mul_(magnitude)


def channel_sum(x: Tensor) -> Tensor:
    """Sum over all but the channels, at least in float32."""
    if x.dtype in (torch.float32, torch.float64):
        return x.sum((0, 2, 3))
    return x.sum((0, 2, 3), dtype=torch.promote_types(x.dtype, torch.float32))


class LeanRPReLU(Function):
    """RPReLU that keeps its input."""

    @staticmethod
    def forward(x: Tensor, shift_in: Tensor, slope: Tensor, shift_out: Tensor) -> Tensor:
        """`x` (N, C, H, W), parameters (C,)."""
        if kernels.applies(x, shift_in, slope, shift_out):
            return kernels.rprelu(x, (shift_in, slope, shift_out))
        planes = Planes(x)
        parameters = [planes.per_channel(p.to(x.dtype)) for p in (shift_in, slope, shift_out)]
        source, target = planes.view(x), planes.empty(x)
        for block in planes.blocks:
            _, y = rprelu(part(source, block, 1), *(part(p, block, 1) for p in parameters))
            target = put(target, block, y)
        assert target is not None
        return as_output(target.view(x.shape))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keeps the input and the parameters that the gradient needs."""
        ctx.save_for_backward(*inputs[:3])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, shift_in, slope, shift_out."""
        x, shift_in, slope = ctx.saved_tensors
        if kernels.applies(x, shift_in, slope, gradient):
            grad_x = torch.empty_like(x)
            sums = kernels.leave(x, (shift_in, slope, shift_in), shift_in, None, None, gradient, None, grad_x)
            return once(gradient, [grad_x, *sums[:3].unbind()])
        with torch.no_grad():
            planes = Planes(x)
            shifts, slopes = (planes.per_channel(p.to(x.dtype)) for p in (shift_in, slope))
            assert shifts is not None
            assert slopes is not None
            source, incoming, target = planes.view(x), planes.view(gradient), planes.empty(x)
            blocks = []
            for block in planes.blocks:
                t = part(source, block, 1) + part(shifts, block, 1)
                memory = slot(target, block, t.dtype)
                grad_x, block_sums = rprelu_gradients(t, part(incoming, block, 1), part(slopes, block, 1), memory)
                target = put(target, block, grad_x, memory=memory)
                blocks.append(block_sums)
            assert target is not None
            grad_parameters = [sums.to(slope.dtype) for sums in planes.channel_sums(blocks)]
        return once(gradient, [target.view(x.shape), *grad_parameters])


class LeanRSign(Function):
    """RSign that keeps its input."""

    @staticmethod
    def forward(x: Tensor, shift: Tensor, beta: Tensor | None, derivative: Derivative) -> Tensor:
        """`x` (N, C, H, W), `shift` (C,), `beta` () or None."""
        if kernels.applies(x, shift):
            return kernels.enter(x, (), shift, beta, 1.0, x.dtype)
        planes = Planes(x)
        thresholds = planes.per_channel(-shift)
        assert thresholds is not None
        source, target = planes.view(x), planes.empty(x)
        for block in planes.blocks:
            memory = slot(target, block, x.dtype)
            s = signs(part(source, block, 1), part(thresholds, block, 1), beta, x.dtype, memory=memory)
            target = put(target, block, s, memory=memory)
        assert target is not None
        return as_output(target.view(x.shape))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keeps the input."""
        x, shift, beta, ctx.derivative = inputs
        ctx.save_for_backward(x, shift, beta)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x and shift; beta is a constant."""
        x, shift, beta = ctx.saved_tensors
        if kernels.applies(x, shift, gradient) and ctx.derivative.has_kernel():
            grad_x = torch.empty_like(x)
            sums = kernels.leave(x, (), shift, beta, ctx.derivative, gradient, None, grad_x)
            return once(gradient, [grad_x, sums[3], None, None])
        with torch.no_grad():
            planes = Planes(x)
            shifts = planes.per_channel(shift)
            assert shifts is not None
            source, incoming, target = planes.view(x), planes.view(gradient), planes.empty(x)
            blocks = []
            for block in planes.blocks:
                v = presign(part(source, block, 1), part(shifts, block, 1), beta)
                memory = slot(target, block, v.dtype)
                grad_v = torch.mul(ctx.derivative.slope(v), part(incoming, block, 1), out=memory)
                blocks.append([channel_sum(grad_v)])
                target = put(target, block, grad_v if beta is None else grad_v.mul_(beta), x.dtype, memory)
            assert target is not None
            grad_shift = planes.channel_sums(blocks)[0].to(shift.dtype)
        return once(gradient, [target.view(x.shape), grad_shift, None, None])
