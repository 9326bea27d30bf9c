"""The error decay estimator: from a wide and flat tanh to one that is nearly the sign.

Source: IR-Net (Qin et al., CVPR 2020, arXiv 1909.10788), t from 0.1 to 10.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bnfree.binarize import SignEstimator

FIRST, LAST = 0.1, 10.0


class EDE(SignEstimator):
    """k t (1 - tanh(t x)^2) with k = max(1/t, 1), and t from 0.1 to 10 with equal factors.

    1 at 0 in the first half, in which it narrows from nearly 1 everywhere (0.99 at |x| = 1) to 0.42 at |x| = 1; then
    narrower and higher, up to 10 at 0. Area 2k: 20 at the start, 2 from the middle on.
    """

    name = "ede"
    jumps = ()
    scheduled = True

    @staticmethod
    def slope(x: Tensor, progress: Any = 0.0) -> Tensor:
        """The derivative of k tanh(t x) at `x`; `progress` from 0 to 1."""
        t = parameter(progress)
        return (1 - torch.tanh(t * x).square()) * (_height(t) * t)

    @staticmethod
    def area(progress: Any = 0.0) -> Any:
        """Integral of the slope, 2 max(1/t, 1)."""
        return 2 * _height(parameter(progress))


def parameter(progress: Any) -> Any:
    """The steepness t."""
    return FIRST * (LAST / FIRST) ** progress


def _height(t: Any) -> Any:
    return (1 / t).clamp(min=1) if isinstance(t, Tensor) else max(1 / t, 1.0)
