"""`bnfree.lean.storage` as a compiled loop; arrays as in `bnfree.lean.numba_planes`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from bnfree.machine_code import compiled

LARGEST = np.float32(65504)
SMALLEST = np.float32(2**-24)
SMALLEST_NORMAL = np.float32(2**-14)
STEP = np.float32(0.75 * 2**-10)
# Adding and taking away these rounds to 11 significant bits, and to multiples of 2**-24.
SPLIT = np.float32(2**13 + 1)
SHIFT = np.float32(0.75)


@njit(error_model="numpy")
def _rounded(x: float) -> float:
    """To the nearest float16, in float32."""
    split = x * SPLIT
    return (x + SHIFT) - SHIFT if abs(x) < SMALLEST_NORMAL else split - (split - x)


@compiled()
def round_planes(u: Any, rprelu: Any, thresholds: Any, beta: float, target: Any, first: int, last: int) -> None:
    """Rounds float32 to float16, in float32, on the side of each kink on which it is.

    Args:
        u: input.
        rprelu: (3, C) or (3, 0).
        thresholds: (C,), of beta * x.
        beta: 1 where there is none.
        target: other memory than `u`.
        first: plane.
        last: one behind.
    """
    size, channels = u.shape[1], len(thresholds)
    zero, one = np.float32(0), np.float32(1)
    for plane in range(first, last):
        c = plane % channels
        source, line, threshold = u[plane], target[plane], thresholds[c]
        shift_in, slope, shift_out = zero, one, zero
        kink = False
        if rprelu.shape[1]:
            shift_in, slope, shift_out, kink = rprelu[0, c], rprelu[1, c], rprelu[2, c], True
        for i in range(size):
            x = source[i]
            x = LARGEST if x > LARGEST else x
            x = -LARGEST if x < -LARGEST else x
            r = _rounded(x)
            step = max(abs(r) * STEP, SMALLEST)
            other = _rounded(r + step if x > r else r - step)
            t, rounded_t = source[i] + shift_in, r + shift_in
            y = (t if t > zero else t * slope) + shift_out
            rounded_y = (rounded_t if rounded_t > zero else rounded_t * slope) + shift_out
            crossed = (y * beta >= threshold) != (rounded_y * beta >= threshold)
            crossed = crossed or (kink and (t > zero) != (rounded_t > zero))
            line[i] = other if crossed else r
