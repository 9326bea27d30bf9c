"""The kernels of the numba engine that are written in Python: comparisons, shortcuts, and a readable convolution.

Each computes one row, of the unit that a record of `numba_unit` describes. The innermost loop of the convolution runs
over 32 output channels, which share one word of activations: LLVM turns it into vector instructions. `numba_tile` is
the same convolution tuned; both are called by `numba_run`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic

from bnfree.packing.numba_unit import BLOCK


@intrinsic
def popcount(typing_context: Any, word: Any) -> Any:
    """Number of bits that are 1 in a uint32, as uint32: one instruction, which Python and numpy in numba lack."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint32(types.uint32), generate


def _pointer(kind: Any) -> Any:
    @intrinsic
    def pointer(typing_context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), generate

    return pointer


floats, words_at, integers, offsets = (
    _pointer(kind) for kind in (types.float32, types.uint32, types.int32, types.int64)
)


@njit(error_model="numpy")
def binarize_row(unit: Any, trunk: int, image: int, row: int) -> None:
    """Bits of one row of the unit's input at `trunk`."""
    width, words = unit.width, unit.words
    padding = (unit.kernel_size - 1) // 2
    x = carray(floats(trunk + ((image * unit.height + row) * width) * words * BLOCK * 4), (width, words, BLOCK))
    thresholds = carray(floats(unit.thresholds), (words, BLOCK))
    place = (image * unit.height + row) * (width + 2 * padding) + padding
    bits = carray(words_at(unit.bits + place * words * 4), (width, words))
    for column in range(width):
        for word in range(words):
            packed = np.uint32(0)
            for lane in range(BLOCK):
                packed |= np.uint32(x[column, word, lane] >= thresholds[word, lane]) << np.uint32(lane)
            bits[column, word] = packed


@njit(error_model="numpy")
def shortcut_row(unit: Any, trunk: int, image: int, row: int) -> None:
    """One row of the unit's shortcut from its input at `trunk`: averaged, scaled, repeated, in this order.

    Sums run row by row from 0, as in torch, and windows at odd edges are incomplete.
    """
    height, width, channels = unit.height, unit.width, unit.channels
    size = 2 if unit.pooled else 1
    x = carray(floats(trunk), ((image + 1) * height, width, unit.words * BLOCK))[image * height :]
    places = unit.shortcut + (image * unit.rows + row) * unit.columns * unit.shortcut_blocks * BLOCK * 4
    shortcut = carray(floats(places), (unit.columns, unit.shortcut_blocks * BLOCK))
    last_i = min(height, (row + 1) * size)
    for column in range(unit.columns):
        last_j = min(width, (column + 1) * size)
        count = np.float32((last_i - row * size) * (last_j - column * size))
        place = shortcut[column, :channels]
        place[:] = np.float32(0)
        for i in range(row * size, last_i):
            for j in range(column * size, last_j):
                for channel in range(channels):
                    place[channel] += x[i, j, channel]
        for channel in range(channels):
            place[channel] = place[channel] / count * unit.factor
        for repeat in range(1, unit.repeats):
            for channel in range(channels):
                shortcut[column, repeat * channels + channel] = place[channel]


@njit(error_model="numpy")
def readable_row(unit: Any, residual: int, output: int, image: int, block: int, row: int) -> None:
    """32 channels of one row of rprelu(shortcut + scale * sum of signs), and their bits for the next unit.

    Args:
        unit: record.
        residual: address of what is added.
        output: address of the output; may be the same.
        image: index of the image.
        block: index of the block of channels.
        row: index of the row of the output.
    """
    kernel_size, words, rows, columns = unit.kernel_size, unit.words, unit.rows, unit.columns
    padding = (kernel_size - 1) // 2
    padded = unit.width + 2 * padding
    bits = carray(words_at(unit.bits), ((image + 1) * unit.height, padded, words))[image * unit.height :]
    weight = (kernel_size, kernel_size, words, BLOCK)
    skipped = block * kernel_size * kernel_size * words * BLOCK * 4
    weights, masks = carray(words_at(unit.weights + skipped), weight), carray(words_at(unit.masks + skipped), weight)
    line = image * rows + row
    added = carray(floats(residual), (line + 1, columns, unit.added_blocks, BLOCK))[line]
    result = carray(floats(output), (line + 1, columns, unit.blocks, BLOCK))[line]
    constants = carray(floats(unit.constants), (unit.blocks, 5, BLOCK))[block]
    base_row = unit.base + carray(offsets(unit.base_rows), rows)[row] + block * BLOCK * 4
    base_columns = carray(offsets(unit.base_columns), columns)
    different = np.empty(BLOCK, np.uint32)
    for column in range(columns):
        different[:] = 0
        for tap_row in range(kernel_size):
            i = row * unit.stride + tap_row - padding
            if i < 0 or i >= unit.height:
                continue
            for tap in range(kernel_size):
                for word in range(words):
                    active = bits[i, column * unit.stride + tap, word]
                    for lane in range(BLOCK):
                        unequal = active ^ weights[tap_row, tap, word, lane]
                        if unit.masks != 0:
                            unequal &= masks[tap_row, tap, word, lane]
                        different[lane] += popcount(unequal)
        base = carray(integers(base_row + base_columns[column]), BLOCK)
        packed = np.uint32(0)
        for lane in range(BLOCK):
            signs = np.float32(base[lane] - 2 * np.int32(different[lane]))
            trunk = signs * constants[0, lane] + added[column, block % unit.added_blocks, lane] + constants[1, lane]
            if not trunk > 0:
                trunk *= constants[2, lane]
            trunk += constants[3, lane]
            result[column, block, lane] = trunk
            packed |= np.uint32(trunk >= constants[4, lane]) << np.uint32(lane)
        if unit.next_bits != 0:
            place = line * (columns + 2 * unit.next_padding) + unit.next_padding + column
            carray(words_at(unit.next_bits), (place + 1, unit.blocks))[place, block] = packed
