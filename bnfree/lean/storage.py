"""Pre-activations kept in 16 bits, on the side of every kink on which they are.

What a step recomputes from its input has two kinks: RPReLU's, where t = u + shift_in changes its sign, and RSign's
threshold; and the derivative of the sign may have jumps, which its estimator declares. Rounding that carries a value
across one of them changes its gradient by as much as there is to change, be the value ever so close, and such changes
are nearly all of the error that 16 bits bring. So a value that rounding to nearest would carry across is rounded the
other way.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bnfree.lean import kernels
from bnfree.lean.activations import presign, rprelu
from bnfree.lean.blocks import Planes, put
from bnfree.lean.elementwise import Entry, UnitRule

LARGEST = torch.finfo(torch.float16).max
SMALLEST = 2.0**-24
# Three quarters of the largest step there is at a number, twice the smallest, leads to the next one and not beyond.
STEP = 0.75 * torch.finfo(torch.float16).eps


def runs_half_saved(rule: UnitRule, u: Tensor) -> bool:
    """Whether a unit keeps its input `u` in 16 bits: not where its estimator says nothing about jumps."""
    return "half_saved" in rule.fast and u.dtype == torch.float32 and rule.derivative.can_be_rounded()


def to_half(u: Tensor, planes: Planes, entry: Entry, jumps: tuple[float, ...] = ()) -> Tensor:
    """A step's float32 input (N, C, H, W) in float16, cut off at its largest number, 65504."""
    if kernels.applies(u, *entry[:4]):
        return kernels.round_to_half(u, entry[:3], entry.shift, entry.beta, jumps).half()
    parameters = [planes.per_channel(p if p is None else p.to(u.dtype)) for p in (*entry[:3], entry.shift)]
    source, target = planes.view(u), planes.empty(u, dtype=torch.float16)
    for block in planes.blocks:
        x = source[:, block]
        local = [None if p is None else p[:, block] for p in parameters]
        half = x.clamp(-LARGEST, LARGEST).half()
        rounded = half.to(u.dtype)
        crossed = torch.zeros((), dtype=torch.bool, device=u.device)
        for before, after in zip(_sides(x, local, entry, jumps), _sides(rounded, local, entry, jumps), strict=True):
            crossed = crossed | (before ^ after)
        step = rounded.abs().mul_(STEP).clamp_(min=SMALLEST)
        other = step.copysign_(x - rounded).add_(rounded).half()
        target = put(target, block, torch.where(crossed, other, half))
    assert target is not None
    return target.view(u.shape)


def _sides(x: Tensor, parameters: list[Tensor | None], entry: Entry, jumps: tuple[float, ...]) -> list[Tensor]:
    """On which side of RPReLU's kink, if there is one, of RSign's threshold, and of the derivative's jumps."""
    shift_in, slope, shift_out, shift = parameters
    assert shift is not None
    sides = []
    if shift_in is not None and slope is not None and shift_out is not None:
        t, x = rprelu(x, shift_in, slope, shift_out)
        sides.append(t > 0)
    v = presign(x, shift, entry.beta)
    # Whichever side a jump itself belongs to: nothing is carried onto it, nor off it.
    return [*sides, v >= 0, *(v > jump for jump in jumps), *(v < jump for jump in jumps)]
