"""The straight-through estimator with a wider window.

Source: the clip bound of the straight-through estimator as a parameter, PokeBNN (CVPR 2022, arXiv 2112.00133) and ReSTE
(ICCV 2023), whose bound 1.5 it is.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bnfree.binarize import SignEstimator

BOUND = 1.5


class WideSTE(SignEstimator):
    """1 on [-1.5, 1.5], else 0. Area 3, where `approx` and `ste` have 2."""

    name = "wide_ste"
    jumps = (-BOUND, BOUND)

    @staticmethod
    def slope(x: Tensor) -> Tensor:
        """1 inside [-1.5, 1.5], 0 outside."""
        return (x.abs() <= BOUND).to(x.dtype)

    @staticmethod
    def area(progress: Any = 0.0) -> Any:
        """Integral of the slope."""
        return 2 * BOUND
