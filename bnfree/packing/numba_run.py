"""What Python calls: a whole network but its classifier, compiled at first use and kept on disk.

It comes as a pair of one body, for one thread and for several; numba's cache keys on functions, not on options.
"""

from __future__ import annotations

from typing import Any

from numba import carray, njit, prange

from bnfree.machine_code import compiled
from bnfree.packing.numba_kernels import binarize_row, frame_row, max_row, offsets, shortcut_row
from bnfree.packing.numba_real_tile import make_real_tile
from bnfree.packing.numba_tile import make_tile
from bnfree.packing.numba_unit import BLOCK, PROJECTED, THROUGH

_1, _2, _4, _7, _8 = (make_tile(pixels, masked=False) for pixels in (1, 2, 4, 7, 8))
_masked_1, _masked_2, _masked_4, _masked_7, _masked_8 = (make_tile(pixels, masked=True) for pixels in (1, 2, 4, 7, 8))
_real_1, _real_2, _real_4, _real_7, _real_8 = (make_real_tile(pixels) for pixels in (1, 2, 4, 7, 8))


@njit(error_model="numpy")
def unit_row(units: Any, index: int, residual: int, output: int, task: int) -> None:
    """32 channels of one row of rprelu(shortcut + scale * sum of signs), and their bits for the next unit.

    Args:
        units: records.
        index: which of them.
        residual: address of what is added.
        output: address of the output; may be the same.
        task: which row, of which block of channels, of which image, counted in this order from the innermost.
    """
    unit = units[index]
    row, block, image = task % unit.rows, task // unit.rows % unit.blocks, task // unit.rows // unit.blocks
    kernel_size, words, columns = unit.kernel_size, unit.words, unit.columns
    padding = (kernel_size - 1) // 2
    bits_row = (unit.width + 2 * padding) * words * 4
    bits_pixel = unit.stride * words * 4
    top = row * unit.stride - padding
    first, last = max(0, -top), min(kernel_size, unit.height - top)
    steps = kernel_size * words
    bits = unit.bits + (image * unit.height + top + first) * bits_row
    skipped = (block * kernel_size + first) * steps * BLOCK * 4
    weights, masks = unit.weights + skipped, unit.masks + skipped
    base = unit.base + carray(offsets(unit.base_rows), unit.rows)[row] + block * BLOCK * 4
    line = (image * unit.rows + row) * columns
    residual_pixel, output_pixel, next_pixel = unit.added_blocks * BLOCK * 4, unit.blocks * BLOCK * 4, unit.blocks * 4
    added = residual + line * residual_pixel + block % unit.added_blocks * BLOCK * 4
    result = output + line * output_pixel + block * BLOCK * 4
    next_line = (image * unit.rows + row) * (columns + 2 * unit.next_padding) + unit.next_padding
    constants = unit.constants + block * 5 * BLOCK * 4
    column = 0
    while column < columns:
        left = columns - column
        pixels = unit.tile if left >= unit.tile else 4 if left >= 4 else 2 if left >= 2 else 1
        next_bits = 0 if unit.next_bits == 0 else unit.next_bits + (next_line + column) * next_pixel + block * 4
        arguments = (
            bits + column * bits_pixel, bits_row, bits_pixel, weights, masks, last - first, steps,
            base, unit.base_columns + 8 * column, added + column * residual_pixel, residual_pixel, constants,
            result + column * output_pixel, output_pixel, next_bits, next_pixel,
        )  # fmt: skip
        if unit.masks == 0:
            if pixels == 8:
                _8(arguments)
            elif pixels == 7:
                _7(arguments)
            elif pixels == 4:
                _4(arguments)
            elif pixels == 2:
                _2(arguments)
            else:
                _1(arguments)
        elif pixels == 8:
            _masked_8(arguments)
        elif pixels == 7:
            _masked_7(arguments)
        elif pixels == 4:
            _masked_4(arguments)
        elif pixels == 2:
            _masked_2(arguments)
        else:
            _masked_1(arguments)
        column += pixels


@njit(error_model="numpy")
def real_row(layers: Any, index: int, task: int) -> None:
    """32 channels of one row of a real convolution; `task` as in `unit_row`."""
    layer = layers[index]
    row, block, image = task % layer.rows, task // layer.rows % layer.blocks, task // layer.rows // layer.blocks
    kernel_size, columns = layer.kernel_size, layer.columns
    padding = (kernel_size - 1) // 2
    input_row, input_pixel = (layer.width + 2 * padding) * layer.channels * 4, layer.stride * layer.channels * 4
    top = row * layer.stride - padding
    first, last = max(0, -top), min(kernel_size, layer.height - top)
    start = layer.input + (image * layer.height + top + first) * input_row
    weights = layer.weights + (block * kernel_size + first) * layer.steps * BLOCK * 4
    output_pixel = layer.blocks * BLOCK * 4
    result = layer.output + (image * layer.rows + row) * columns * output_pixel + block * BLOCK * 4
    constants = layer.constants + block * 2 * BLOCK * 4
    column = 0
    while column < columns:
        left = columns - column
        pixels = layer.tile if left >= layer.tile else 4 if left >= 4 else 2 if left >= 2 else 1
        arguments = (
            start + column * input_pixel, input_row, input_pixel, weights, last - first, layer.steps, constants,
            result + column * output_pixel, output_pixel,
        )  # fmt: skip
        if pixels == 8:
            _real_8(arguments)
        elif pixels == 7:
            _real_7(arguments)
        elif pixels == 4:
            _real_4(arguments)
        elif pixels == 2:
            _real_2(arguments)
        else:
            _real_1(arguments)
        column += pixels


@compiled()
def run(stem: Any, units: Any, projections: Any, images: int, source: int, residual: int, output: int) -> None:
    """Computes a network up to its last unit, or units alone.

    Args:
        stem: the record of the first layer, or an array of none.
        units: records.
        projections: record of each unit's projection; not read where there is none.
        images: number of images N.
        source: address of the images, float32 (N, C, H, W); without a stem that of the first unit's input, which is
            overwritten, or 0 where its bits stand ready.
        residual: address of the first unit's shortcut, which is overwritten, or 0: it is computed.
        output: address of the last unit's output.
    """
    trunk = source
    if len(stem) > 0:
        layer = stem[0]
        height, pooled_rows = layer.height, layer.pooled_rows
        for task in range(images * height):
            frame_row(stem, 0, source, task // height, task % height)
        for task in range(images * layer.blocks * layer.rows):
            real_row(stem, 0, task)
        trunk = layer.output
        if layer.pooled != 0:
            for task in range(images * pooled_rows):
                max_row(stem, 0, task // pooled_rows, task % pooled_rows)
            trunk = layer.pooled
    if trunk != 0 and len(units) > 0:
        rows = units[0].height
        for task in range(images * rows):
            binarize_row(units, 0, trunk, task // rows, task % rows)
    for index in range(len(units)):
        unit = units[index]
        rows = unit.rows
        if residual == 0:
            residual = trunk
            if unit.shortcut_kind != THROUGH:
                for task in range(images * rows):
                    shortcut_row(units, index, trunk, task // rows, task % rows)
                residual = unit.shortcut
            if unit.shortcut_kind == PROJECTED:
                for task in range(images * unit.blocks * unit.rows):
                    real_row(projections, index, task)
                residual = projections[index].output
        trunk = output if index == len(units) - 1 else unit.output if unit.output != 0 else residual
        for task in range(images * unit.blocks * unit.rows):
            unit_row(units, index, residual, trunk, task)
        residual = 0


@compiled(parallel=True)
def run_threaded(stem: Any, units: Any, projections: Any, images: int, source: int, residual: int, output: int) -> None:
    """As `run`, on numba's threads."""
    trunk = source
    if len(stem) > 0:
        layer = stem[0]
        height, pooled_rows = layer.height, layer.pooled_rows
        for task in prange(images * height):
            frame_row(stem, 0, source, task // height, task % height)
        for task in prange(images * layer.blocks * layer.rows):
            real_row(stem, 0, task)
        trunk = layer.output
        if layer.pooled != 0:
            for task in prange(images * pooled_rows):
                max_row(stem, 0, task // pooled_rows, task % pooled_rows)
            trunk = layer.pooled
    if trunk != 0 and len(units) > 0:
        rows = units[0].height
        for task in prange(images * rows):
            binarize_row(units, 0, trunk, task // rows, task % rows)
    for index in range(len(units)):
        unit = units[index]
        rows = unit.rows
        if residual == 0:
            residual = trunk
            if unit.shortcut_kind != THROUGH:
                for task in prange(images * rows):
                    shortcut_row(units, index, trunk, task // rows, task % rows)
                residual = unit.shortcut
            if unit.shortcut_kind == PROJECTED:
                for task in prange(images * unit.blocks * unit.rows):
                    real_row(projections, index, task)
                residual = projections[index].output
        trunk = output if index == len(units) - 1 else unit.output if unit.output != 0 else residual
        for task in prange(images * unit.blocks * unit.rows):
            unit_row(units, index, residual, trunk, task)
        residual = 0
