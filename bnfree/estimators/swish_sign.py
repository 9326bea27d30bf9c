"""The sign with the derivative of a swish-like step, which is below zero beyond its flanks.

Source: BNN+ (Darabi et al., arXiv 1812.11800), larq's `swish_sign`, beta 5.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bnfree.binarize import SignEstimator

BETA = 5.0


class SwishSign(SignEstimator):
    """beta (2 - beta x tanh(beta x / 2)) / (1 + cosh(beta x)) with beta 5: 5 at 0, below 0 from |x| = 0.48 on.

    Area 2, since it is the derivative of a step from -1 to 1.
    """

    name = "swish_sign"
    jumps = ()

    @staticmethod
    def slope(x: Tensor) -> Tensor:
        """The derivative at `x`."""
        # Beyond, the result is below 1e-14.
        bent = (BETA * x).clamp(-40, 40)
        # 1 / (1 + cosh) by a number that shrinks: the cosine hyperbolic of half precision is infinite from 12 on.
        shrunk = torch.exp(-bent.abs())
        return BETA * (2 - bent * torch.tanh(bent / 2)) * (2 * shrunk / (1 + shrunk).square())
