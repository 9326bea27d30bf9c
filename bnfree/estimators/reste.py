"""The rectified straight-through estimator: the derivative of a power function that comes closer to the sign.

Source: ReSTE (Wu et al., ICCV 2023) and its code (github.com/DravenALG/ReSTE), bound 1.5, knee 0.1, o from
1 to 3 on a cosine.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bnfree.binarize import SignEstimator

BOUND, KNEE = 1.5, 0.1
FIRST, LAST = 1.0, 3.0


class ReSTE(SignEstimator):
    """(1/o) |x|^(1/o - 1) on 0.1 < |x| <= 1.5, the secant 0.1^(1/o) / 0.1 below, 0 beyond; o from 1 to 3.

    It is the derivative of sign(x) |x|^(1/o) with a straight line through 0. At o = 1 it is 1 on [-1.5, 1.5]. Area 3 at
    the start, 2.29 at the end.
    """

    name = "reste"
    jumps = (-BOUND, -KNEE, KNEE, BOUND)
    scheduled = True

    @staticmethod
    def slope(x: Tensor, progress: Any = 0.0) -> Tensor:
        """The factor at `x`; `progress` from 0 to 1."""
        power = 1 / parameter(progress)
        size = x.abs()
        outside = power * size.clamp(min=KNEE) ** (power - 1)
        return torch.where(size > KNEE, outside, KNEE ** (power - 1)) * (size <= BOUND)

    @staticmethod
    def surrogate(x: Tensor, progress: Any = 0.0) -> Tensor:
        """What the slope is the derivative of, sign(x) |x|^(1/o) with its secant below 0.1, for any |x|."""
        power = 1 / parameter(progress)
        size = x.abs()
        return torch.where(size > KNEE, size.clamp(min=KNEE) ** power, KNEE ** (power - 1) * size) * x.sign()

    @staticmethod
    def area(progress: Any = 0.0) -> Any:
        """Integral of the slope, 2 * 1.5^(1/o)."""
        return 2 * BOUND ** (1 / parameter(progress))


def parameter(progress: Any) -> Any:
    """The exponent o = 1 + (1 - cos(pi/2 progress)) * 2."""
    angle = math.pi / 2 * progress
    return FIRST + (LAST - FIRST) * (1 - (torch.cos(angle) if isinstance(angle, Tensor) else math.cos(angle)))
