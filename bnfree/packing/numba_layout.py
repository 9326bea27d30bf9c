"""Layers in the layout of the numba engine: their weights and constants."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnfree.packing.bits import TernaryWeight
from bnfree.packing.layers import PackedStem, PackedUnit
from bnfree.packing.numba_unit import BLOCK
from bnfree.packing.real_weights import RealWeight


class UnitLayout:
    """Weights and constants of a unit, whatever the images' size.

    Args:
        unit: the unit.
        following: the unit behind it, or None.
    """

    def __init__(self, unit: PackedUnit, following: PackedUnit | None) -> None:
        self.unit, self.following = unit, following
        self.projection = None if unit.projection is None else RealLayout.of_projection(unit.projection)
        out_channels, self.in_channels, self.kernel_size, _ = unit.weight.shape
        self.padding = (self.kernel_size - 1) // 2
        self.words, self.blocks = -(-self.in_channels // BLOCK), -(-out_channels // BLOCK)
        self.out_channels = out_channels
        self.repeats = out_channels // self.in_channels if self.projection is None else 1
        values = unit.weight.values().numpy()
        self.weights = _words_of(values > 0)
        self.masks = None if unit.weight.survivors is None else _words_of(values != 0)
        # What each tap adds where the image is, and where words of zeros are read instead: -1 for every channel.
        taps = filled(values.reshape(*values.shape[:2], -1), 0, self.blocks * BLOCK)
        self.survivors = np.abs(taps).sum(1, dtype=np.int32)
        self.at_sides = -taps.sum(1, dtype=np.int32)
        nothing = torch.zeros(out_channels) if following is None else following.thresholds
        rows = torch.stack([unit.weight.scale, *unit.rprelu, nothing]).numpy()
        self.constants = np.ascontiguousarray(
            filled(rows, 1, self.blocks * BLOCK).reshape(5, self.blocks, BLOCK).swapaxes(0, 1)
        )
        self.constants[-1, 4, out_channels - self.blocks * BLOCK or BLOCK :] = np.inf
        self.thresholds = np.full(self.words * BLOCK, np.inf, np.float32)
        self.thresholds[: self.in_channels] = unit.thresholds.numpy()

    def cases(self, size: int) -> tuple[list[tuple[int, int]], NDArray[np.int64]]:
        """As `tap_cases`, of the unit's convolution."""
        return tap_cases(size, self.kernel_size, self.unit.stride)

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


class RealLayout:
    """Weights and constants of a real convolution, whatever the images' size.

    Args:
        weight: float32 (O, I, k, k).
        factor: float32 (O,): of the sums.
        shift: float32 (O,): what is added then.
        stride: stride.
        channels: floats of a pixel of the input in memory, at least I.
        pool: whether max pooling follows.
    """

    def __init__(
        self, weight: Tensor, factor: Tensor, shift: Tensor, stride: int, channels: int, pool: bool = False
    ) -> None:
        out_channels, in_channels, self.kernel_size, _ = weight.shape
        self.stride, self.channels, self.pool = stride, channels, pool
        self.steps, self.blocks = self.kernel_size * in_channels, -(-out_channels // BLOCK)
        taps = filled(weight.permute(2, 3, 1, 0).numpy(), 3, self.blocks * BLOCK)
        taps = taps.reshape(self.kernel_size, self.steps, self.blocks, BLOCK)
        self.weights = np.ascontiguousarray(taps.transpose(2, 0, 1, 3))
        constants = filled(torch.stack([factor, shift]).numpy(), 1, self.blocks * BLOCK)
        self.constants = np.ascontiguousarray(constants.reshape(2, self.blocks, BLOCK).swapaxes(0, 1))

    @classmethod
    def of_stem(cls, stem: PackedStem) -> RealLayout:
        """The first layer."""
        weight = stem.weight.expand()
        return cls(weight, torch.ones(len(weight)), stem.bias, stem.stride, weight.shape[1], stem.pool)

    @classmethod
    def of_projection(cls, projection: TernaryWeight | RealWeight) -> RealLayout:
        """The projection of a shortcut, whose channels are filled up to whole words."""
        if isinstance(projection, TernaryWeight):
            weight, factor = projection.values().float(), projection.scale
        else:
            weight = projection.expand()
            factor = torch.ones(len(weight))
        channels = -(-weight.shape[1] // BLOCK) * BLOCK
        return cls(weight, factor, torch.zeros(len(weight)), 1, channels)


def tap_cases(size: int, kernel_size: int, stride: int) -> tuple[list[tuple[int, int]], NDArray[np.int64]]:
    """Which taps meet an image of some height or width: the cases, and the case of each position of the output."""
    starts = [position * stride - (kernel_size - 1) // 2 for position in range(-(-size // stride))]
    inside = [(max(0, -start), min(kernel_size, size - start)) for start in starts]
    cases = sorted(set(inside))
    return cases, np.array([cases.index(case) for case in inside], np.int64)


def _words_of(bits: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """Bits (O, I, kH, kW) as words (blocks, taps, words, 32)."""
    out_channels, in_channels = bits.shape[:2]
    taps = bits.reshape(out_channels, in_channels, -1).transpose(0, 2, 1)
    taps = filled(filled(taps, 2, math.ceil(in_channels / BLOCK) * BLOCK), 0, math.ceil(out_channels / BLOCK) * BLOCK)
    packed = np.packbits(np.ascontiguousarray(taps), axis=-1, bitorder="little").view("<u4").astype(np.uint32)
    return np.ascontiguousarray(packed.reshape(-1, BLOCK, *packed.shape[1:]).transpose(0, 2, 3, 1))


def filled(values: NDArray[np.generic], axis: int, size: int) -> NDArray[np.generic]:
    """Filled up with zeros along an axis."""
    return np.pad(values, [(0, size - values.shape[axis]) if i == axis else (0, 0) for i in range(values.ndim)])
