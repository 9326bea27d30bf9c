"""The kernels of the numba engine: comparisons to bits, and XNOR-popcount convolution with all that follows it.

Activations are (N, H, W, words): 64 channels in a uint64, bit 1 for +1. Weights are (blocks, taps, words, 64): the
innermost index is the output channel, so that 64 of them share one word of activations and LLVM turns the loop into
vector instructions (VPOPCNTQ where the processor has it). Channels that fill up a word are 0 in both and cost nothing:
their XOR is 0. Positions outside of the image are left out, which is zero padding exactly.

Kernels come in pairs of one body, for one thread and for several; numba's cache keys on functions, not on options.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, prange, types
from numba.extending import intrinsic

LANES = 64


def compiled(**options: Any) -> Callable[[Callable[..., None]], Any]:
    """`numba.njit` that keeps machine code on disk, where there is a place for it: read-only systems have none."""

    def decorate(function: Callable[..., None]) -> Any:
        options.update(nogil=True, error_model="numpy")
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:
            return njit(**options)(function)

    return decorate


@intrinsic
def popcount(typing_context: Any, word: Any) -> Any:
    """Number of bits that are 1 in a uint64, as uint64: one instruction, which Python and numpy in numba lack."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@compiled()
def binarize_row(x: Any, thresholds: Any, bits: Any, image: int, row: int) -> None:
    """Bits of one row: `x` float32 (N, H, W, C), `thresholds` (C,), `bits` uint64 (N, H, W, words), written."""
    channels = x.shape[3]
    for column in range(x.shape[2]):
        for word in range(bits.shape[3]):
            first = word * LANES
            packed = np.uint64(0)
            for lane in range(min(LANES, channels - first)):
                positive = x[image, row, column, first + lane] >= thresholds[first + lane]
                packed |= np.uint64(positive) << np.uint64(lane)
            bits[image, row, column, word] = packed


@compiled()
def binarize(x: Any, thresholds: Any, bits: Any) -> None:
    """`binarize_row` for every row."""
    rows = x.shape[1]
    for index in range(x.shape[0] * rows):
        binarize_row(x, thresholds, bits, index // rows, index % rows)


@compiled(parallel=True)
def binarize_threaded(x: Any, thresholds: Any, bits: Any) -> None:
    """`binarize_row` for every row, on numba's threads."""
    rows = x.shape[1]
    for index in prange(x.shape[0] * rows):
        binarize_row(x, thresholds, bits, index // rows, index % rows)


@compiled()
def unit_row(
    bits: Any, weights: Any, masks: Any, survivors: Any, in_channels: int, kernel_size: int, stride: int,
    shortcut: Any, scale: Any, rprelu: Any, output: Any, image: int, row: int,
) -> None:  # fmt: skip
    """One row of rprelu(shortcut + scale * sum of signs).

    Args:
        bits: activations, uint64 (N, H, W, words).
        weights: signs, uint64 (blocks, taps, words, 64).
        masks: survivors, likewise, or None: numba compiles a variant without them.
        survivors: how many weights of each tap survive, int64 (blocks, taps, 64); not read without masks.
        in_channels: how many weights a tap has.
        kernel_size: height and width of the kernel.
        stride: stride.
        shortcut: float32 (N, H', W', O).
        scale: float32 (O,).
        rprelu: float32 (3, O).
        output: float32 (N, H', W', O), written.
        image: index of the image.
        row: index of the row of the output.
    """
    height, width, words = bits.shape[1:]
    channels = output.shape[3]
    padding = (kernel_size - 1) // 2
    different = np.empty(LANES, np.int64)
    products = np.empty(LANES, np.int64)
    for column in range(output.shape[2]):
        for block in range(weights.shape[0]):
            different[:] = 0
            products[:] = 0
            taps_inside = 0
            for tap in range(kernel_size * kernel_size):
                i = row * stride - padding + tap // kernel_size
                j = column * stride - padding + tap % kernel_size
                if i < 0 or i >= height or j < 0 or j >= width:
                    continue
                taps_inside += 1
                if masks is not None:
                    for lane in range(LANES):
                        products[lane] += survivors[block, tap, lane]
                for word in range(words):
                    active = bits[image, i, j, word]
                    for lane in range(LANES):
                        unequal = active ^ weights[block, tap, word, lane]
                        if masks is not None:
                            unequal &= masks[block, tap, word, lane]
                        different[lane] += np.int64(popcount(unequal))
            if masks is None:
                products[:] = taps_inside * in_channels
            first = block * LANES
            for lane in range(min(LANES, channels - first)):
                channel = first + lane
                signs = np.float32(products[lane] - 2 * different[lane])
                trunk = signs * scale[channel] + shortcut[image, row, column, channel] + rprelu[0, channel]
                if not trunk > 0:
                    trunk *= rprelu[1, channel]
                output[image, row, column, channel] = trunk + rprelu[2, channel]


@compiled()
def unit(
    bits: Any, weights: Any, masks: Any, survivors: Any, in_channels: int, kernel_size: int, stride: int,
    shortcut: Any, scale: Any, rprelu: Any, output: Any,
) -> None:  # fmt: skip
    """`unit_row` for every row."""
    rows = output.shape[1]
    for index in range(output.shape[0] * rows):
        unit_row(
            bits, weights, masks, survivors, in_channels, kernel_size, stride, shortcut, scale, rprelu, output,
            index // rows, index % rows,
        )  # fmt: skip


@compiled(parallel=True)
def unit_threaded(
    bits: Any, weights: Any, masks: Any, survivors: Any, in_channels: int, kernel_size: int, stride: int,
    shortcut: Any, scale: Any, rprelu: Any, output: Any,
) -> None:  # fmt: skip
    """`unit_row` for every row, on numba's threads."""
    rows = output.shape[1]
    for index in prange(output.shape[0] * rows):
        unit_row(
            bits, weights, masks, survivors, in_channels, kernel_size, stride, shortcut, scale, rprelu, output,
            index // rows, index % rows,
        )  # fmt: skip
