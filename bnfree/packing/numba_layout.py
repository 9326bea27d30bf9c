"""Units in the layout of the numba engine: weights and constants, and everything that depends on the images' size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnfree.packing.layers import PackedUnit
from bnfree.packing.numba_unit import BLOCK, COMPUTED, PROJECTED, THROUGH, UNIT


class UnitLayout:
    """Weights and constants of a unit, whatever the images' size.

    Args:
        unit: the unit.
        projected: whether torch convolves its shortcut.
        following: the unit behind it, or None.
    """

    def __init__(self, unit: PackedUnit, projected: bool, following: PackedUnit | None) -> None:
        self.unit, self.projected, self.following = unit, projected, following
        out_channels, self.in_channels, self.kernel_size, _ = unit.weight.shape
        self.padding = (self.kernel_size - 1) // 2
        self.words, self.blocks = -(-self.in_channels // BLOCK), -(-out_channels // BLOCK)
        self.out_channels = out_channels
        self.repeats = 1 if projected else out_channels // self.in_channels
        values = unit.weight.values().numpy()
        self.weights = _words_of(values > 0)
        self.masks = None if unit.weight.survivors is None else _words_of(values != 0)
        # What each tap adds where the image is, and where words of zeros are read instead: -1 for every channel.
        taps = _filled(values.reshape(*values.shape[:2], -1), 0, self.blocks * BLOCK)
        self.survivors = np.abs(taps).sum(1, dtype=np.int32)
        self.at_sides = -taps.sum(1, dtype=np.int32)
        nothing = torch.zeros(out_channels) if following is None else following.thresholds
        rows = torch.stack([unit.weight.scale, *unit.rprelu, nothing]).numpy()
        self.constants = np.ascontiguousarray(
            _filled(rows, 1, self.blocks * BLOCK).reshape(5, self.blocks, BLOCK).swapaxes(0, 1)
        )
        self.constants[-1, 4, out_channels - self.blocks * BLOCK or BLOCK :] = np.inf
        self.thresholds = np.full(self.words * BLOCK, np.inf, np.float32)
        self.thresholds[: self.in_channels] = unit.thresholds.numpy()

    def cases(self, size: int) -> tuple[list[tuple[int, int]], NDArray[np.int64]]:
        """Which taps meet an image of some height or width: the cases, and the case of each position of the output."""
        starts = [position * self.unit.stride - self.padding for position in range(-(-size // self.unit.stride))]
        inside = [(max(0, -start), min(self.kernel_size, size - start)) for start in starts]
        cases = sorted(set(inside))
        return cases, np.array([cases.index(case) for case in inside], np.int64)

    def base(self, rows: Sequence[tuple[int, int]], columns: Sequence[tuple[int, int]]) -> NDArray[np.float32]:
        """Sums before any difference is counted, (row cases, column cases, channels)."""
        survivors, at_sides = (
            taps.reshape(-1, self.kernel_size, self.kernel_size) for taps in (self.survivors, self.at_sides)
        )
        base = np.empty((len(rows), len(columns), len(survivors)), np.float32)
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                read, met = survivors[:, slice(*row)], (slice(None), slice(None), slice(*column))
                sides = at_sides[:, slice(*row)]
                base[i, j] = read.sum((1, 2)) - (sides.sum((1, 2)) - sides[met].sum((1, 2)))
        return base


class Workspace:
    """Records of units for one size of images, and the memory that these work in.

    Args:
        layouts: units one behind the other.
        images: number of images N.
        height: height of the first unit's input.
        width: its width.
    """

    def __init__(self, layouts: Sequence[UnitLayout], images: int, height: int, width: int) -> None:
        self._kept: list[NDArray[np.generic] | Tensor] = []
        self.shortcuts: list[Tensor | None] = []
        """What a projection takes, (N, H', W', filled channels), of each unit that has one."""
        self.units = np.zeros(len(layouts), UNIT)
        for record, layout in zip(self.units, layouts, strict=True):
            rows, columns = (-(-size // layout.unit.stride) for size in (height, width))
            values = self._place(layout, images, height, width, rows, columns)
            values["tile"] = 7 if columns % 8 and columns % 7 == 0 else 8
            for name, value in values.items():
                record[name] = value
            height, width = rows, columns
        for record, layout, following in zip(self.units, layouts, self.units[1:], strict=False):
            assert layout.following is not None
            record["next_bits"] = following["bits"]
            record["next_padding"] = (layout.following.weight.shape[2] - 1) // 2
        self.output_shape = (images, height, width, layouts[-1].blocks * BLOCK)

    def _place(
        self, layout: UnitLayout, images: int, height: int, width: int, rows: int, columns: int
    ) -> dict[str, int | float]:
        unit, words, blocks = layout.unit, layout.words, layout.blocks
        pooled = unit.stride == 2
        kind, shortcut, output = THROUGH, 0, 0
        shortcut_blocks, added_blocks = words if layout.projected else blocks, blocks
        if layout.projected:
            kind = PROJECTED
        elif pooled or unit.shortcut_scale != 1 or (layout.repeats > 1 and layout.in_channels % BLOCK):
            kind = COMPUTED
        elif layout.repeats > 1:
            added_blocks = words
            output = self._new(images, rows, columns, blocks * BLOCK)[1]
        self.shortcuts.append(None)
        if kind != THROUGH:
            self.shortcuts[-1], shortcut = self._new(images, rows, columns, shortcut_blocks * BLOCK)
        row_cases, rows_of = layout.cases(height)
        column_cases, columns_of = layout.cases(width)
        base = layout.base(row_cases, column_cases)
        bits = np.zeros((images, height, width + 2 * layout.padding, words), np.uint32)
        return {
            "height": height, "width": width, "channels": layout.in_channels, "kernel_size": layout.kernel_size,
            "stride": unit.stride, "words": words, "bits": self._keep(bits), "weights": self._keep(layout.weights),
            "masks": 0 if layout.masks is None else self._keep(layout.masks),
            "rows": rows, "columns": columns, "blocks": blocks, "base": self._keep(base),
            "base_rows": self._keep(rows_of * base.strides[0]),
            "base_columns": self._keep(columns_of * base.strides[1]),
            "constants": self._keep(layout.constants), "thresholds": self._keep(layout.thresholds),
            "shortcut_kind": kind, "shortcut": shortcut, "shortcut_blocks": shortcut_blocks,
            "added_blocks": added_blocks, "pooled": pooled, "repeats": layout.repeats, "output": output,
            "factor": 1 if layout.projected else unit.shortcut_scale,
        }  # fmt: skip

    def _new(self, *shape: int) -> tuple[Tensor, int]:
        tensor = torch.zeros(shape)
        self._kept.append(tensor)
        return tensor, tensor.data_ptr()

    def _keep(self, array: NDArray[np.generic]) -> int:
        self._kept.append(array)
        return array.ctypes.data


def _words_of(bits: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """Bits (O, I, kH, kW) as words (blocks, taps, words, 32)."""
    out_channels, in_channels = bits.shape[:2]
    taps = bits.reshape(out_channels, in_channels, -1).transpose(0, 2, 1)
    taps = _filled(_filled(taps, 2, math.ceil(in_channels / BLOCK) * BLOCK), 0, math.ceil(out_channels / BLOCK) * BLOCK)
    packed = np.packbits(np.ascontiguousarray(taps), axis=-1, bitorder="little").view("<u4").astype(np.uint32)
    return np.ascontiguousarray(packed.reshape(-1, BLOCK, *packed.shape[1:]).transpose(0, 2, 3, 1))


def _filled(values: NDArray[np.generic], axis: int, size: int) -> NDArray[np.generic]:
    """Filled up with zeros along an axis."""
    return np.pad(values, [(0, size - values.shape[axis]) if i == axis else (0, 0) for i in range(values.ndim)])
