"""The elementwise work of the lean path as compiled loops: each plane (H, W) goes through the first-level cache once.

Tensors (N, C, H, W) come as arrays (N * C, H * W), parameters as (C,), empty where there is none. Every function works
on the planes `first` to `last`, so that threads share the work by ranges, and whatever the ranges are the results are
the same: sums over a plane are kept plane by plane. Products and sums are rounded as those of `bnfree.lean.elementwise`
and `bnfree.lean.activations`, which say what is computed.

A loop never reads one array and writes another that may lie in the same memory: it would not become vector code.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from bnfree.lean.derivative import IDENTITY, QUADRATIC, WINDOW
from bnfree.machine_code import compiled


@njit(fastmath={"reassoc"}, error_model="numpy")
def plus(total: float, value: float) -> float:
    """The one sum whose order is free."""
    return total + value


@njit(error_model="numpy")
def _rprelu(u: Any, shift_in: float, slope: float, shift_out: float, x: Any) -> None:
    zero = u.dtype.type(0)
    for i in range(len(x)):
        t = u[i] + shift_in
        x[i] = (t if t > zero else t * slope) + shift_out


@njit(error_model="numpy")
def _pool(x: Any, width: int, beta: float, pooled: Any) -> None:
    """Means of 2x2 of beta * x; windows at odd edges are incomplete."""
    height, columns = len(x) // width, (width + 1) // 2
    half, quarter = x.dtype.type(0.5), x.dtype.type(0.25)
    for row in range((height + 1) // 2):
        above, place = x[2 * row * width : (2 * row + 1) * width], pooled[row * columns : (row + 1) * columns]
        if 2 * row + 1 < height:
            below = x[(2 * row + 1) * width : (2 * row + 2) * width]
            for j in range(width // 2):
                total = above[2 * j] * beta + above[2 * j + 1] * beta
                place[j] = (total + below[2 * j] * beta + below[2 * j + 1] * beta) * quarter
            if width % 2:
                place[columns - 1] = (above[width - 1] * beta + below[width - 1] * beta) * half
        else:
            for j in range(width // 2):
                place[j] = (above[2 * j] * beta + above[2 * j + 1] * beta) * half
            if width % 2:
                place[columns - 1] = above[width - 1] * beta


@njit(error_model="numpy")
def _add_unpooled(gradient: Any, width: int, beta: float, h: Any) -> None:
    """Adds beta times the gradient of means of 2x2."""
    height, columns = len(h) // width, (width + 1) // 2
    one, half = h.dtype.type(1), h.dtype.type(0.5)
    for i in range(height):
        line, incoming = h[i * width : (i + 1) * width], gradient[i // 2 * columns : (i // 2 + 1) * columns]
        share = half if i // 2 * 2 + 1 < height else one
        for j in range(width // 2):
            value = incoming[j] * (share * half) * beta
            line[2 * j] += value
            line[2 * j + 1] += value
        if width % 2:
            line[width - 1] += incoming[columns - 1] * share * beta


@compiled()
def rprelu_planes(u: Any, rprelu: Any, target: Any, first: int, last: int) -> None:
    """RPReLU of `u`; `rprelu` (3, C): shift_in, slope, shift_out."""
    channels = rprelu.shape[1]
    for plane in range(first, last):
        c = plane % channels
        _rprelu(u[plane], rprelu[0, c], rprelu[1, c], rprelu[2, c], target[plane])


@compiled()
def enter_planes(
    u: Any, rprelu: Any, thresholds: Any, beta: float, signs: Any, values: Any, shortcut: Any, width: int,
    first: int, last: int,
) -> None:  # fmt: skip
    """Signs and shortcut.

    Args:
        u: input.
        rprelu: (3, C) or (3, 0).
        thresholds: (C,).
        beta: 1 where there is none.
        signs: values[1] where beta * x >= threshold, else values[0].
        values: (2,), of the dtype of `signs`.
        shortcut: x, or pooled beta * x, or (0, 0).
        width: of a plane of `u` if the shortcut is pooled, else 0.
        first: plane.
        last: one behind.
    """
    size, channels = u.shape[1], len(thresholds)
    scratch = np.empty(size, u.dtype)
    low, high = values[0], values[1]
    for plane in range(first, last):
        c = plane % channels
        x = u[plane]
        if rprelu.shape[1]:
            _rprelu(u[plane], rprelu[0, c], rprelu[1, c], rprelu[2, c], scratch)
            x = scratch
        threshold, line = thresholds[c], signs[plane]
        for i in range(size):
            line[i] = high if x[i] * beta >= threshold else low
        if width and shortcut.shape[1]:
            _pool(x, width, beta, shortcut[plane])
        elif shortcut.shape[1]:
            shortcut[plane] = x


@compiled()
def combine_planes(u: Any, rprelu: Any, y: Any, scale: Any, first: int, last: int) -> None:
    """The sum y = x + scale * y, where x is RPReLU(u), or `u` where `rprelu` is (3, 0)."""
    size, channels = u.shape[1], len(scale)
    scratch = np.empty(size, u.dtype)
    for plane in range(first, last):
        c = plane % channels
        x = u[plane]
        if rprelu.shape[1]:
            _rprelu(u[plane], rprelu[0, c], rprelu[1, c], rprelu[2, c], scratch)
            x = scratch
        line, factor = y[plane], scale[c]
        for i in range(size):
            line[i] = line[i] * factor + x[i]


@compiled()
def leave_planes(
    u: Any, rprelu: Any, shift: Any, beta: float, estimator: int, grad_signs: Any, grad_shortcut: Any, width: int,
    target: Any, sums: Any, first: int, last: int,
) -> None:  # fmt: skip
    """Gradients back through signs, shortcut and RPReLU.

    Args:
        u: input.
        rprelu: (3, C) or (3, 0).
        shift: (C,), of the signs.
        beta: 1 where there is none.
        estimator: `QUADRATIC`, `WINDOW` or `IDENTITY`.
        grad_signs: gradient of the signs.
        grad_shortcut: gradient of x, or of pooled beta * x, or (0, 0).
        width: of a plane of `u` if the shortcut is pooled, else 0.
        target: gradient of `u`; may be `grad_signs`.
        sums: (4, planes): of the gradients of shift_in, slope, shift_out (only with RPReLU) and shift.
        first: plane.
        last: one behind.
    """
    size, channels = u.shape[1], len(shift)
    scratch, h = np.empty(size, u.dtype), np.empty(size, u.dtype)
    zero, one, two = u.dtype.type(0), u.dtype.type(1), u.dtype.type(2)
    for plane in range(first, last):
        c = plane % channels
        source, incoming, outgoing = u[plane], grad_signs[plane], target[plane]
        x, offset, total = source, shift[c], zero
        if rprelu.shape[1] and estimator != IDENTITY:
            _rprelu(source, rprelu[0, c], rprelu[1, c], rprelu[2, c], scratch)
            x = scratch
        if estimator == QUADRATIC:
            for i in range(size):
                slope = two - two * abs(x[i] * beta + offset)
                value = (zero if slope < zero else slope) * incoming[i]
                total = plus(total, value)
                h[i] = value * beta
        elif estimator == WINDOW:
            for i in range(size):
                value = (one if abs(x[i] * beta + offset) <= one else zero) * incoming[i]
                total = plus(total, value)
                h[i] = value * beta
        else:
            h[:] = incoming
        sums[3, plane] = total
        if width and grad_shortcut.shape[1]:
            _add_unpooled(grad_shortcut[plane], width, beta, h)
        elif grad_shortcut.shape[1]:
            residual = grad_shortcut[plane]
            for i in range(size):
                h[i] += residual[i]
        if rprelu.shape[1]:
            shift_in, factor = rprelu[0, c], rprelu[1, c]
            above, below, grad_slope = zero, zero, zero
            for i in range(size):
                t = source[i] + shift_in
                positive = zero if t <= zero else h[i]
                negative = h[i] - positive
                above, below, grad_slope = plus(above, positive), plus(below, negative), plus(grad_slope, t * negative)
                outgoing[i] = negative * factor + positive
            sums[0, plane], sums[1, plane], sums[2, plane] = above + factor * below, grad_slope, above + below
        else:
            outgoing[:] = h
