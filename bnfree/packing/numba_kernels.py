"""What surrounds the convolutions of the numba engine, row by row: frames, comparisons, pooling.

Each function computes one row of the layer that a record of `numba_unit` describes. It takes the array and an index,
since threads cannot be handed a record.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic

from bnfree.packing.numba_unit import BLOCK
from bnfree.packing.numba_vectors import compare


def pointer_to(kind: Any) -> Any:
    """A function for compiled code from an address to the pointer to a kind of number there."""

    @intrinsic
    def pointer(typing_context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), generate

    return pointer


floats, words_at, offsets = (pointer_to(kind) for kind in (types.float32, types.uint32, types.int64))


@njit(error_model="numpy")
def binarize_row(units: Any, index: int, trunk: int, image: int, row: int) -> None:
    """Bits of one row of the unit's input at `trunk`."""
    unit = units[index]
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
def shortcut_row(units: Any, index: int, trunk: int, image: int, row: int) -> None:
    """One row of the unit's shortcut from its input at `trunk`: averaged, scaled, repeated, in this order.

    Sums run row by row, as in torch. Windows at odd edges are incomplete: they have 1 or 2 pixels.
    """
    unit = units[index]
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


@njit(error_model="numpy")
def frame_row(layers: Any, index: int, source: int, image: int, row: int) -> None:
    """One row of the images at `source`, float32 (N, C, H, W), in the layout of the layer's input."""
    layer = layers[index]
    height, width, channels = layer.height, layer.width, layer.channels
    padding = (layer.kernel_size - 1) // 2
    values = carray(floats(source), ((image + 1) * channels, height, width))[image * channels :]
    frame = carray(floats(layer.input), ((image + 1) * height, width + 2 * padding, channels))[image * height + row]
    for column in range(width):
        for channel in range(channels):
            frame[padding + column, channel] = values[channel, row, column]


@njit(error_model="numpy")
def max_row(layers: Any, index: int, image: int, row: int) -> None:
    """One row of the layer's output after max pooling; what is not a number stays so."""
    layer = layers[index]
    rows, columns, channels = layer.rows, layer.columns, layer.blocks * BLOCK
    x = carray(floats(layer.output), ((image + 1) * rows, columns, channels))[image * rows :]
    line = image * layer.pooled_rows + row
    pooled = carray(floats(layer.pooled), (line + 1, layer.pooled_columns, channels))[line]
    highest = np.empty((columns, channels), np.float32)
    for column in range(columns):
        for channel in range(channels):
            highest[column, channel] = x[2 * row, column, channel]
    for i in range(max(0, 2 * row - 1), min(rows, 2 * row + 2)):
        for column in range(columns):
            for channel in range(channels):
                highest[column, channel] = _larger(x[i, column, channel], highest[column, channel])
    for column in range(layer.pooled_columns):
        left, right = max(0, 2 * column - 1), min(columns - 1, 2 * column + 1)
        for channel in range(channels):
            value = _larger(highest[left, channel], highest[2 * column, channel])
            pooled[column, channel] = _larger(highest[right, channel], value)


@njit(error_model="numpy")
def _larger(value: float, other: float) -> float:
    """The larger of two numbers, or what is not one."""
    return value if value > other or value != value else other
