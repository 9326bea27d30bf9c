"""What Python calls: a run of units, on one thread and on several; compiled at first use, and kept on disk.

Kernels come in pairs of one body, for one thread and for several; numba's cache keys on functions, not on options.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import carray, njit, prange

from bnfree.packing.numba_kernels import binarize_row, offsets, shortcut_row
from bnfree.packing.numba_tile import make_tile
from bnfree.packing.numba_unit import BLOCK, PROJECTED, THROUGH

_1, _2, _4, _7, _8 = (make_tile(pixels, masked=False) for pixels in (1, 2, 4, 7, 8))
_masked_1, _masked_2, _masked_4, _masked_7, _masked_8 = (make_tile(pixels, masked=True) for pixels in (1, 2, 4, 7, 8))


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` that keeps machine code on disk, where there is a place for it: read-only systems have none."""

    def decorate(function: Callable[..., Any]) -> Any:
        options.update(nogil=True, error_model="numpy")
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:
            return njit(**options)(function)

    return decorate


@njit(error_model="numpy")
def unit_row(unit: Any, residual: int, output: int, task: int) -> None:
    """32 channels of one row of rprelu(shortcut + scale * sum of signs), and their bits for the next unit.

    Args:
        unit: record.
        residual: address of what is added.
        output: address of the output; may be the same.
        task: which row, of which block of channels, of which image, counted in this order from the innermost.
    """
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


@compiled()
def run(units: Any, first: int, images: int, trunk: int, residual: int, output: int) -> tuple[int, int]:
    """Computes units until one needs a shortcut that torch projects.

    Args:
        units: records.
        first: index of the unit to begin with. The bits of the first unit's input are computed here, those of others by
            the unit in front.
        images: number of images N.
        trunk: address of that unit's input; it is overwritten.
        residual: address of its projected shortcut, which is overwritten, or 0.
        output: address of the last unit's output.

    Returns:
        Index of the unit whose shortcut is to be projected, from what stands at its `shortcut`, or the number of units;
        and the address of its input.
    """
    if first == 0 and residual == 0:
        rows = units[0].height
        for task in range(images * rows):
            binarize_row(units[0], trunk, task // rows, task % rows)
    for index in range(first, len(units)):
        unit = units[index]
        if residual == 0:
            residual = trunk
            if unit.shortcut_kind != THROUGH:
                for task in range(images * unit.rows):
                    shortcut_row(unit, trunk, task // unit.rows, task % unit.rows)
                residual = unit.shortcut
            if unit.shortcut_kind == PROJECTED:
                return index, trunk
        trunk = output if index == len(units) - 1 else unit.output if unit.output != 0 else residual
        for task in range(images * unit.blocks * unit.rows):
            unit_row(unit, residual, trunk, task)
        residual = 0
    return len(units), trunk


@compiled(parallel=True)
def run_threaded(units: Any, first: int, images: int, trunk: int, residual: int, output: int) -> tuple[int, int]:
    """As `run`, on numba's threads."""
    if first == 0 and residual == 0:
        rows = units[0].height
        for task in prange(images * rows):
            binarize_row(units[0], trunk, task // rows, task % rows)
    for index in range(first, len(units)):
        unit = units[index]
        if residual == 0:
            residual = trunk
            if unit.shortcut_kind != THROUGH:
                for task in prange(images * unit.rows):
                    shortcut_row(unit, trunk, task // unit.rows, task % unit.rows)
                residual = unit.shortcut
            if unit.shortcut_kind == PROJECTED:
                return index, trunk
        trunk = output if index == len(units) - 1 else unit.output if unit.output != 0 else residual
        for task in prange(images * unit.blocks * unit.rows):
            unit_row(unit, residual, trunk, task)
        residual = 0
    return len(units), trunk
