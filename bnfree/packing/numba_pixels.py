"""The first layer on 8-bit images: what Python calls, compiled at first use and kept on disk, see `numba_run`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit, prange, types

from bnfree.machine_code import compiled
from bnfree.packing.numba_kernels import max_row, offsets, pointer_to, words_at
from bnfree.packing.numba_pixel_tile import make_pixel_tile
from bnfree.packing.numba_unit import BLOCK
from bnfree.packing.numba_vectors import copy_word

# Sums of more pixels than 4 do not fit into the registers, three planes at a time.
_1, _2, _4 = (make_pixel_tile(pixels) for pixels in (1, 2, 4))
_bytes = pointer_to(types.uint8)


@njit(error_model="numpy")
def word_row(layers: Any, source: int, image: int, row: int) -> None:
    """One row of the images at `source`, uint8 (N, C, H, W), the channels of a pixel in one word."""
    layer = layers[0]
    height, width, channels = layer.height, layer.width, layer.channels
    words = carray(words_at(layer.words + (image * height + row) * width * 4), width)
    words[:] = 0
    for channel in range(channels):
        values = carray(_bytes(source + ((image * channels + channel) * height + row) * width), width)
        for column in range(width):
            words[column] |= np.uint32(values[column]) << np.uint32(8 * channel)


@njit(error_model="numpy")
def strip_row(layers: Any, image: int, row: int) -> None:
    """The strip of one row of the output. A word's empty bytes are overwritten by the words that follow."""
    layer = layers[0]
    height, width, channels, kernel_size = layer.height, layer.width, layer.channels, layer.kernel_size
    padding = (kernel_size - 1) // 2
    top = row * layer.stride - padding
    first, last = max(0, -top), min(kernel_size, height - top)
    words = layer.words + (image * height + top + first) * width * 4
    strip = layer.strips + (image * layer.rows + row) * layer.strip_row
    strip += (padding * kernel_size + first) * channels
    for column in range(width):
        for tap in range(last - first):
            copy_word(words + (tap * width + column) * 4, strip + (column * kernel_size + tap) * channels)


@njit(error_model="numpy")
def pixel_row(layers: Any, task: int) -> None:
    """32 channels of one row of the output; `task` as in `numba_run.unit_row`."""
    layer = layers[0]
    row, block, image = task % layer.rows, task // layer.rows % layer.blocks, task // layer.rows // layer.blocks
    columns = layer.columns
    strip = layer.strips + (image * layer.rows + row) * layer.strip_row
    pixel = layer.stride * layer.kernel_size * layer.channels
    weights = layer.weights + block * 3 * layer.steps * BLOCK * 4
    skipped = carray(offsets(layer.base_rows), layer.rows)[row] + block * BLOCK * 4
    output_pixel = layer.blocks * BLOCK * 4
    result = layer.output + (image * layer.rows + row) * columns * output_pixel + block * BLOCK * 4
    column = 0
    while column < columns:
        left = columns - column
        pixels = 4 if left >= 4 else 2 if left >= 2 else 1
        arguments = (
            strip + column * pixel, pixel, weights, layer.steps, layer.base + skipped, layer.rest + skipped,
            layer.base_columns + 8 * column, layer.scales + block * BLOCK * 4, result + column * output_pixel,
            output_pixel,
        )  # fmt: skip
        if pixels == 4:
            _4(arguments)
        elif pixels == 2:
            _2(arguments)
        else:
            _1(arguments)
        column += pixels


@compiled()
def run_pixels(layers: Any, images: int, source: int) -> None:
    """Computes the first layer.

    Args:
        layers: its record, an array of one.
        images: number of images N.
        source: address of the images, uint8 (N, C, H, W).
    """
    layer = layers[0]
    height, rows, pooled_rows = layer.height, layer.rows, layer.pooled_rows
    for task in range(images * height):
        word_row(layers, source, task // height, task % height)
    for task in range(images * rows):
        strip_row(layers, task // rows, task % rows)
    for task in range(images * layer.blocks * rows):
        pixel_row(layers, task)
    if layer.pooled != 0:
        for task in range(images * pooled_rows):
            max_row(layers, 0, task // pooled_rows, task % pooled_rows)


@compiled(parallel=True)
def run_pixels_threaded(layers: Any, images: int, source: int) -> None:
    """As `run_pixels`, on numba's threads."""
    layer = layers[0]
    height, rows, pooled_rows = layer.height, layer.rows, layer.pooled_rows
    for task in prange(images * height):
        word_row(layers, source, task // height, task % height)
    for task in prange(images * rows):
        strip_row(layers, task // rows, task % rows)
    for task in prange(images * layer.blocks * rows):
        pixel_row(layers, task)
    if layer.pooled != 0:
        for task in prange(images * pooled_rows):
            max_row(layers, 0, task // pooled_rows, task % pooled_rows)
