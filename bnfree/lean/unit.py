"""From one pre-activation to the next: RPReLU of the last unit, RSign, binary convolution, shortcut, in one step.

The step keeps its input, a tensor that the step before has made, and recomputes everything elementwise in the backward
pass: what lies between two pre-activations is a function of the first. Let u be the pre-activation, then

    x = RPReLU(u),  s = sign(beta * x + shift),  next u = shortcut(x) + alpha * conv(s)

where shortcut(x) is x, x repeated, the average-pooled beta * x, or a 1x1 convolution of that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bnfree.lean import weights
from bnfree.lean.blocks import Planes
from bnfree.lean.convolution import (
    compute_dtype,
    convolution_gradients,
    convolve,
    convolve_prepared,
    small_power,
)
from bnfree.lean.elementwise import Entry, UnitRule, combine, enter, leave
from bnfree.lean.fast import convolve_half, convolve_int8, gradients_bf16, runs_bf16, runs_half, runs_int8
from bnfree.lean.function import Function, as_output
from bnfree.lean.geometry import Geometry
from bnfree.lean.refusal import once
from bnfree.lean.rows import spread_rows
from bnfree.lean.storage import runs_half_saved, to_half
from bnfree.lean.weights import PreparedWeight

POINTWISE = Geometry(1, 0, 1)


def unit_forward(
    u: Tensor,
    entry: Entry,
    prepared: PreparedWeight,
    projection: PreparedWeight | None,
    rule: UnitRule,
    kept_rows: Tensor | None = None,
    keep: bool = False,
) -> Tensor:
    """The next pre-activation (N, O, H', W'); `kept_rows` of a `BinaryConv2d`, `keep` as in `convolve_int8`."""
    dtype = compute_dtype(u)
    planes = Planes(u)
    if runs_int8(rule, dtype, u, keep):
        s, shortcut = enter(u, planes, entry, rule, rule.residual, dtype=torch.uint8)
        y = convolve_int8(s, prepared.values, rule.geometry, keep)
    elif runs_half(rule, dtype, u):
        s, shortcut = enter(u, planes, entry, rule, rule.residual, dtype=torch.float16)
        y = convolve_half(s, prepared.values, rule.geometry)
    else:
        s, shortcut = enter(u, planes, entry, rule, rule.residual)
        y = convolve(s.to(dtype), prepared.values.to(dtype), rule.geometry).to(u.dtype)
    scale = None
    if prepared.scale is not None:
        scale = (prepared.scale * rule.alpha).to(u.dtype)
    elif rule.alpha != 1:
        # After the convolution, as the plain unit does it: the rounding of the two would differ.
        scale = y.new_full((y.shape[1],), rule.alpha)
    if kept_rows is not None:
        y = spread_rows(y, kept_rows, rule.channels)
        scale = None if scale is None else scale.new_zeros(rule.channels).index_copy(0, kept_rows, scale)
    if projection is not None:
        assert shortcut is not None
        shortcut = convolve_prepared(shortcut, projection, POINTWISE, dtype).to(u.dtype)
    if not rule.residual:
        return y if scale is None else y.mul_(scale.view(1, -1, 1, 1))
    if rule.repeats > 1:
        assert shortcut is not None
        shortcut = torch.cat([shortcut] * rule.repeats, 1)
    return combine(u, planes, entry, y, scale, shortcut)


def bare_signs(
    weight: Tensor, gain: Tensor | None, mask: Tensor | None, moments: Tensor, rule: UnitRule
) -> tuple[Tensor, Tensor]:
    """-1, 0, +1 (O, I, kH, kW) and the factors (O,) that make alpha * effective weight of them.

    A filter whose factor is 0 has zeros, and 1 as its factor: it passes no gradient on, but has one.
    """
    scale = moments[4] * rule.alpha if gain is None else moments[4] * rule.alpha * gain.view(-1)
    alive = scale != 0
    bare = torch.cat([moments[:4], alive.to(moments.dtype).unsqueeze(0)])
    return weights.rebuild(weight, None, mask, bare, rule.weight), scale.where(alive, 1)


class UnitStep(Function):
    """One step of the chain, see the module."""

    @staticmethod
    def forward(
        u: Tensor,
        shift_in: Tensor | None,
        slope: Tensor | None,
        shift_out: Tensor | None,
        shift: Tensor,
        beta: Tensor | None,
        weight: Tensor,
        gain: Tensor | None,
        mask: Tensor | None,
        projection_weight: Tensor | None,
        projection_gain: Tensor | None,
        projection_mask: Tensor | None,
        kept_rows: Tensor | None,
        rule: UnitRule,
    ) -> tuple[Tensor, ...]:
        """The next pre-activation, the moments of both weights (5, all rows), and what is kept in place of `u`."""
        prepared = weights.prepare(weight, gain, mask, rule.weight)
        moments, projection = [prepared.moments], None
        if rule.projection is not None:
            assert projection_weight is not None
            projection = weights.prepare(projection_weight, projection_gain, projection_mask, rule.projection)
            moments.append(projection.moments)
        entry = Entry(shift_in, slope, shift_out, shift, beta)
        results = as_output(unit_forward(u, entry, prepared, projection, rule, kept_rows)), torch.cat(moments, 1)
        if not runs_half_saved(rule, u):
            return results
        return (*results, to_half(u, Planes(u), entry, rule.derivative.jumps or ()))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keeps the input, or what stands for it, the parameters and the moments."""
        u, *parameters, ctx.rule = inputs
        _, moments, *half = output
        ctx.dtype, ctx.input_dtype = compute_dtype(u), u.dtype
        ctx.mark_non_differentiable(moments, *half)
        ctx.save_for_backward(*(half or [u]), *parameters, moments)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of u and of all parameters."""
        (u, shift_in, slope, shift_out, shift, beta, weight, gain, mask,
         projection_weight, projection_gain, projection_mask, kept_rows, moments) = ctx.saved_tensors  # fmt: skip
        entry, rule = Entry(shift_in, slope, shift_out, shift, beta), ctx.rule
        moments, projection_moments = moments[:, : len(weight)], moments[:, len(weight) :]
        needs = ctx.needs_input_grad
        with torch.no_grad():
            u = u.to(ctx.input_dtype)
            planes = Planes(u)
            need_entry, need_filters = any(needs[:5]), needs[6] or needs[7]
            of_branch = gradient if kept_rows is None else gradient.index_select(1, kept_rows)
            if runs_bf16(rule, ctx.dtype, u):
                s, shortcut = enter(u, planes, entry, rule, rule.projection is not None, dtype=torch.bfloat16)
                signs, scale = bare_signs(weight, gain, mask, moments, rule)
                grad_s, grad_full = gradients_bf16(of_branch, s, signs, scale, rule.geometry, need_entry, need_filters)
            else:
                power = small_power(weight, ctx.dtype)
                s, shortcut = enter(u, planes, entry, rule, rule.projection is not None, power)
                full = weights.rebuild(weight, gain, mask, moments, rule.weight, rule.alpha).to(ctx.dtype)
                grad_s, grad_full = convolution_gradients(
                    of_branch.to(ctx.dtype), s.to(ctx.dtype), full, rule.geometry, need_entry, need_filters
                )
                if grad_full is not None:
                    # s was power * sign.
                    grad_full = grad_full.to(torch.promote_types(grad_full.dtype, torch.float32))
                    grad_full = grad_full if power == 1 else grad_full / power
            grad_weight = grad_gain = grad_projection = grad_projection_gain = None
            if grad_full is not None:
                grad_weight, grad_gain = weights.gradients(
                    grad_full, weight, gain, mask, moments, rule.weight, rule.alpha
                )
            grad_shortcut: Tensor | None = None
            if rule.projection is not None:
                assert shortcut is not None
                of_projection = projection_weight, projection_gain, projection_mask
                full = weights.rebuild(*of_projection, projection_moments, rule.projection).to(ctx.dtype)
                grad_shortcut, grad_full = convolution_gradients(
                    gradient.to(ctx.dtype), shortcut.to(ctx.dtype), full, POINTWISE, need_entry, needs[9] or needs[10]
                )
                if grad_full is not None:
                    grad_projection, grad_projection_gain = weights.gradients(
                        grad_full, *of_projection, projection_moments, rule.projection
                    )
            elif rule.residual:
                grad_shortcut = gradient
                if rule.repeats > 1:
                    grad_shortcut = gradient.unflatten(1, (rule.repeats, u.shape[1])).sum(1)
            grad_u: Tensor | None = None
            grad_parameters: list[Tensor | None] = [None] * 4
            if grad_s is not None:
                grad_u, grad_parameters = leave(u, planes, entry, rule, grad_s, grad_shortcut)
        of_weights = [grad_weight, grad_gain, None, grad_projection, grad_projection_gain, None]
        return once(gradient, [grad_u, *grad_parameters, None, *of_weights, None, None])
