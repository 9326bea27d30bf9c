"""What surrounds the convolutions of the numba engine, row by row: comparisons of the input, and shortcuts.

Each function computes one row, of the unit that a record of `numba_unit` describes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic

from bnfree.packing.numba_tile import compare
from bnfree.packing.numba_unit import BLOCK


def _pointer(kind: Any) -> Any:
    @intrinsic
    def pointer(typing_context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), generate

    return pointer


floats, words_at, offsets = (_pointer(kind) for kind in (types.float32, types.uint32, types.int64))


@njit(error_model="numpy")
def binarize_row(unit: Any, trunk: int, image: int, row: int) -> None:
    """Bits of one row of the unit's input at `trunk`."""
    width, words = unit.width, unit.words
    padding = (unit.kernel_size - 1) // 2
    pixel = words * BLOCK * 4
    line = (image * unit.height + row) * width
    place = (image * unit.height + row) * (width + 2 * padding) + padding
    bits = carray(words_at(unit.bits + place * words * 4), (width, words))
    for column in range(width):
        for word in range(words):
            skipped = word * BLOCK * 4
            bits[column, word] = compare(trunk + (line + column) * pixel + skipped, unit.thresholds + skipped)


@njit(error_model="numpy")
def shortcut_row(unit: Any, trunk: int, image: int, row: int) -> None:
    """One row of the unit's shortcut from its input at `trunk`: averaged, scaled, repeated, in this order.

    Sums run row by row, as in torch. Windows at odd edges are incomplete: they have 1 or 2 pixels.
    """
    height, width, channels = unit.height, unit.width, unit.channels
    size = 2 if unit.pooled else 1
    x = carray(floats(trunk), ((image + 1) * height, width, unit.words * BLOCK))[image * height :]
    places = unit.shortcut + (image * unit.rows + row) * unit.columns * unit.shortcut_blocks * BLOCK * 4
    shortcut = carray(floats(places), (unit.columns, unit.shortcut_blocks * BLOCK))
    last_i = min(height, (row + 1) * size)
    for column in range(unit.columns):
        last_j = min(width, (column + 1) * size)
        place = shortcut[column, :channels]
        if last_i - row * size == 2 and last_j - column * size == 2:
            above, below = x[2 * row, 2 * column : 2 * column + 2], x[2 * row + 1, 2 * column : 2 * column + 2]
            for channel in range(channels):
                total = above[0, channel] + above[1, channel] + below[0, channel] + below[1, channel]
                place[channel] = total * np.float32(0.25) * unit.factor
        else:
            share = np.float32(1) / np.float32((last_i - row * size) * (last_j - column * size))
            place[:] = np.float32(0)
            for i in range(row * size, last_i):
                for j in range(column * size, last_j):
                    for channel in range(channels):
                        place[channel] += x[i, j, channel]
            for channel in range(channels):
                place[channel] = place[channel] * share * unit.factor
        for repeat in range(1, unit.repeats):
            for channel in range(channels):
                shortcut[column, repeat * channels + channel] = place[channel]
