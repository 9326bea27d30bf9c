"""The records that compiled code reads, for one size of images, and the memory that it works in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from bnfree.packing.numba_layout import RealLayout, UnitLayout, tap_cases
from bnfree.packing.numba_pixel_layout import PixelLayout
from bnfree.packing.numba_unit import BLOCK, COMPUTED, PIXELS, PROJECTED, REAL, THROUGH, UNIT


class Workspace:
    """Layers for one size of images.

    Args:
        stem: the first layer on normalised or on 8-bit images, or None.
        layouts: units one behind the other.
        images: number of images N.
        height: height of the images; without a stem, of the first unit's input.
        width: its width.
        given: whether the first unit's shortcut is given, rather than computed.
    """

    def __init__(
        self,
        stem: RealLayout | PixelLayout | None,
        layouts: Sequence[UnitLayout],
        images: int,
        height: int,
        width: int,
        given: bool = False,
    ) -> None:
        self._kept: list[NDArray[np.generic]] = []
        self.images = images
        self.stem = np.zeros(int(isinstance(stem, RealLayout)), REAL)
        self.trunk = 0
        """Address of the output of a first layer on 8-bit images; 0 without."""
        self.pixels = np.zeros(int(isinstance(stem, PixelLayout)), PIXELS)
        self.units, self.projections = np.zeros(len(layouts), UNIT), np.zeros(len(layouts), REAL)
        if isinstance(stem, PixelLayout):
            height, width = self._place_pixels(self.pixels[0], stem, height, width)
            self.trunk = int(self.pixels[0]["pooled"] or self.pixels[0]["output"])
        elif stem is not None:
            height, width = self._place_real(self.stem[0], stem, height, width)
        channels = 0 if stem is None else stem.blocks * BLOCK
        for index, (record, layout) in enumerate(zip(self.units, layouts, strict=True)):
            rows, columns = (-(-size // layout.unit.stride) for size in (height, width))
            self._place(record, layout, height, width, rows, columns)
            self._place_shortcut(index, layout, rows, columns, given and index == 0)
            height, width = rows, columns
            channels = layout.blocks * BLOCK
        for record, layout, following in zip(self.units, layouts, self.units[1:], strict=False):
            assert layout.following is not None
            record["next_bits"] = following["bits"]
            record["next_padding"] = (layout.following.weight.shape[2] - 1) // 2
        self.output_shape = (images, height, width, channels)

    def _place(self, record: np.void, layout: UnitLayout, height: int, width: int, rows: int, columns: int) -> None:
        row_cases, rows_of = layout.cases(height)
        column_cases, columns_of = layout.cases(width)
        base = layout.base(row_cases, column_cases)
        bits = np.zeros((self.images, height, width + 2 * layout.padding, layout.words), np.uint32)
        values = {
            "height": height, "width": width, "channels": layout.in_channels, "kernel_size": layout.kernel_size,
            "stride": layout.unit.stride, "words": layout.words, "bits": self._keep(bits),
            "weights": self._keep(layout.weights), "masks": 0 if layout.masks is None else self._keep(layout.masks),
            "rows": rows, "columns": columns, "blocks": layout.blocks, "tile": _tile(columns), "base": self._keep(base),
            "base_rows": self._keep(rows_of * base.strides[0]),
            "base_columns": self._keep(columns_of * base.strides[1]),
            "constants": self._keep(layout.constants), "thresholds": self._keep(layout.thresholds),
        }  # fmt: skip
        _fill(record, values)

    def _place_shortcut(self, index: int, layout: UnitLayout, rows: int, columns: int, given: bool) -> None:
        unit, record = layout.unit, self.units[index]
        kind, blocks, added_blocks, output = THROUGH, layout.blocks, layout.blocks, False
        if given:
            pass
        elif layout.projection is not None:
            kind, blocks = PROJECTED, layout.words
        elif unit.stride == 2 or unit.shortcut_scale != 1 or (layout.repeats > 1 and layout.in_channels % BLOCK):
            kind = COMPUTED
        elif layout.repeats > 1:
            added_blocks, output = layout.words, True
        shortcut = 0 if kind == THROUGH else self._new(rows, columns, blocks * BLOCK)
        values = {
            "shortcut_kind": kind, "shortcut": shortcut, "shortcut_blocks": blocks, "added_blocks": added_blocks,
            "pooled": unit.stride == 2, "repeats": layout.repeats,
            "output": self._new(rows, columns, layout.blocks * BLOCK) if output else 0,
            "factor": 1 if layout.projection is not None else unit.shortcut_scale,
        }  # fmt: skip
        _fill(record, values)
        if kind == PROJECTED:
            assert layout.projection is not None
            self._place_real(self.projections[index], layout.projection, rows, columns, shortcut)

    def _place_real(
        self, record: np.void, layout: RealLayout, height: int, width: int, source: int | None = None
    ) -> tuple[int, int]:
        """Fills in a real convolution, whose input is at `source` or gets memory of its own; the size of its output."""
        padding = (layout.kernel_size - 1) // 2
        rows, columns = (-(-size // layout.stride) for size in (height, width))
        channels = layout.blocks * BLOCK
        pooled = [-(-size // 2) for size in (rows, columns)] if layout.pool else [0, 0]
        values = {
            "height": height, "width": width, "channels": layout.channels, "kernel_size": layout.kernel_size,
            "stride": layout.stride, "steps": layout.steps, "weights": self._keep(layout.weights),
            "input": self._new(height, width + 2 * padding, layout.channels) if source is None else source,
            "constants": self._keep(layout.constants), "rows": rows, "columns": columns, "blocks": layout.blocks,
            "tile": _tile(columns), "output": self._new(rows, columns, channels),
            "pooled": self._new(*pooled, channels) if layout.pool else 0,
            "pooled_rows": pooled[0], "pooled_columns": pooled[1],
        }  # fmt: skip
        _fill(record, values)
        return (pooled[0], pooled[1]) if layout.pool else (rows, columns)

    def _place_pixels(self, record: np.void, layout: PixelLayout, height: int, width: int) -> tuple[int, int]:
        """Fills in the first layer on 8-bit images; the size of its output."""
        stride, kernel_size = layout.stem.stride, layout.kernel_size
        (row_cases, rows_of), (column_cases, columns_of) = (
            tap_cases(size, kernel_size, stride) for size in (height, width)
        )
        base, rest = layout.base(row_cases, column_cases)
        rows, columns, channels = len(rows_of), len(columns_of), layout.blocks * BLOCK
        pooled = [-(-size // 2) for size in (rows, columns)] if layout.stem.pool else [0, 0]
        # The last window is read, and its last tap written, in groups of four bytes: behind the end of its columns.
        strip_row = (width + 2 * (kernel_size // 2)) * kernel_size * layout.channels + 4
        values = {
            "height": height, "width": width, "channels": layout.channels, "kernel_size": kernel_size,
            "stride": stride, "steps": layout.steps, "strip_row": strip_row,
            "words": self._keep(np.zeros((self.images, height, width), np.uint32)),
            "strips": self._keep(np.zeros((self.images, rows, strip_row), np.uint8)),
            "weights": self._keep(layout.weights), "scales": self._keep(layout.scales),
            "base": self._keep(base), "rest": self._keep(rest), "base_rows": self._keep(rows_of * base.strides[0]),
            "base_columns": self._keep(columns_of * base.strides[1]), "rows": rows, "columns": columns,
            "blocks": layout.blocks, "output": self._new(rows, columns, channels),
            "pooled": self._new(*pooled, channels) if layout.stem.pool else 0,
            "pooled_rows": pooled[0], "pooled_columns": pooled[1],
        }  # fmt: skip
        _fill(record, values)
        return (pooled[0], pooled[1]) if layout.stem.pool else (rows, columns)

    def _new(self, *shape: int) -> int:
        return self._keep(np.zeros((self.images, *shape), np.float32))

    def _keep(self, array: NDArray[np.generic]) -> int:
        """The address of an array, which lives as long as the workspace."""
        self._kept.append(array)
        return array.ctypes.data


def _fill(record: np.void, values: Mapping[str, int | float]) -> None:
    for name, value in values.items():
        record[name] = value


def _tile(columns: int) -> int:
    return 7 if columns % 8 and columns % 7 == 0 else 8
