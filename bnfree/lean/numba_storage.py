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


@njit(error_model="numpy")
def _both_sides(x: float) -> tuple[float, float]:
    """The nearest float16 and the next one on the other side of `x`, both in float32."""
    x = LARGEST if x > LARGEST else x
    x = -LARGEST if x < -LARGEST else x
    r = _rounded(x)
    step = max(abs(r) * STEP, SMALLEST)
    return r, _rounded(r + step if x > r else r - step)


@compiled()
def round_planes(u: Any, rprelu: Any, shift: Any, beta: float, jumps: Any, target: Any, first: int, last: int) -> None:
    """Rounds float32 to float16, in float32, on the side of each kink on which it is.

    Args:
        u: input.
        rprelu: (3, C) or (3, 0).
        shift: (C,), of the signs.
        beta: 1 where there is none.
        jumps: (J,), where the derivative of the signs is not continuous.
        target: other memory than `u`.
        first: plane.
        last: one behind.
    """
    size, channels = u.shape[1], len(shift)
    zero, one = np.float32(0), np.float32(1)
    for plane in range(first, last):
        c = plane % channels
        source, line, offset = u[plane], target[plane], shift[c]
        threshold = -offset
        shift_in, slope, shift_out = zero, one, zero
        kink = False
        if rprelu.shape[1]:
            shift_in, slope, shift_out, kink = rprelu[0, c], rprelu[1, c], rprelu[2, c], True
        for i in range(size):
            r, other = _both_sides(source[i])
            t, rounded_t = source[i] + shift_in, r + shift_in
            y = (t if t > zero else t * slope) + shift_out
            rounded_y = (rounded_t if rounded_t > zero else rounded_t * slope) + shift_out
            crossed = (y * beta >= threshold) != (rounded_y * beta >= threshold)
            crossed = crossed or (kink and (t > zero) != (rounded_t > zero))
            line[i] = other if crossed else r
        # Most derivatives have none, and the loop above stays vector code.
        for jump in jumps:
            for i in range(size):
                r, other = _both_sides(source[i])
                t, rounded_t = source[i] + shift_in, r + shift_in
                v = ((t if t > zero else t * slope) + shift_out) * beta + offset
                rounded_v = ((rounded_t if rounded_t > zero else rounded_t * slope) + shift_out) * beta + offset
                crossed = (v > jump) != (rounded_v > jump) or (v < jump) != (rounded_v < jump)
                line[i] = other if crossed else line[i]
