"""Where a network's activations lie in memory, so that little of it suffices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bnfree.packing.layers import PackedLayers, PackedUnit

BLOCK = 16
"""Output channels that are computed at once; the channels of an activation are filled up to these."""
WORD = 32
"""Channels in a word of bits."""
NUMBER = 4
"""Bytes of a value and of a word."""


@dataclass(frozen=True)
class UnitPlace:
    """A unit's sizes, and where its activations lie, counted in values and in words."""

    height: int
    width: int
    rows: int
    """Height of the output."""
    columns: int
    """Width of the output."""
    computed: bool
    """Whether what is added is computed, and is not the input itself."""
    backward: bool
    """Whether the output, which takes the place of the input, is computed from the last row up."""
    scratch: int
    """Where a row of what is added is computed."""
    bits: int
    """Signs of the input."""
    next_bits: int
    """Signs of the output, of the next unit's input that is."""


@dataclass(frozen=True)
class Arena:
    """Static memory: values (trunk and scratch) and words of bits."""

    stem_rows: int
    stem_columns: int
    """Height and width of the first layer's output before pooling."""
    height: int
    width: int
    """Height and width of the first unit's input."""
    stem_scratch: int
    """Where three rows of the first layer wait for pooling."""
    units: tuple[UnitPlace, ...]
    last_scratch: int
    """Where features are averaged."""
    values: int
    words: int

    @property
    def size(self) -> int:
        """Bytes."""
        return NUMBER * (self.values + self.words)


def plan(layers: PackedLayers, height: int, width: int) -> Arena:
    """The memory of a network for one size of images.

    The trunk is kept once: a unit's output takes the place of its input, row by row. Behind the larger of the two lies
    what a step needs besides. Signs of a unit's input and of its output lie at the two ends of a common memory.

    Args:
        layers: the network, with at least one unit.
        height: of the images.
        width: of the images.
    """
    stem = layers.stem
    stem_rows, stem_columns = height, width = -(-height // stem.stride), -(-width // stem.stride)
    if stem.pool:
        height, width = -(-height // 2), -(-width // 2)
    channels = filled(len(stem.bias))
    first_height, first_width, trunk = height, width, height * width * channels
    stem_scratch = trunk
    values = trunk + (3 * stem_columns * channels if stem.pool else 0)
    rows_of_bits = [
        _bits(unit, *size) for unit, size in zip(layers.units, _sizes(layers.units, height, width), strict=False)
    ]
    words = max(a + b for a, b in zip(rows_of_bits, [*rows_of_bits[1:], 0], strict=True))
    starts = [0 if index % 2 == 0 else words - count for index, count in enumerate(rows_of_bits)]
    units = []
    for index, unit in enumerate(layers.units):
        out_channels, in_channels = unit.weight.shape[:2]
        rows, columns = -(-height // unit.stride), -(-width // unit.stride)
        computed = (
            unit.stride == 2 or unit.projection is not None or unit.shortcut_scale != 1 or out_channels != in_channels
        )
        output = rows * columns * filled(out_channels)
        # A row may take the place of the rows that it and those before it are computed from.
        backward = columns * filled(out_channels) > unit.stride * width * filled(in_channels)
        scratch = max(trunk, output)
        row = columns * (filled(out_channels) + (filled(in_channels) if unit.projection is not None else 0))
        values = max(values, scratch + (row if computed else 0))
        following = starts[index + 1] if index + 1 < len(starts) else 0
        units.append(UnitPlace(height, width, rows, columns, computed, backward, scratch, starts[index], following))
        height, width, trunk = rows, columns, output
    values = max(values, trunk + layers.units[-1].weight.shape[0])
    return Arena(
        stem_rows, stem_columns, first_height, first_width, stem_scratch, tuple(units), trunk, values, words
    )  # fmt: skip


def filled(channels: int, size: int = BLOCK) -> int:
    """Channels in memory."""
    return -(-channels // size) * size


def _sizes(units: Sequence[PackedUnit], height: int, width: int) -> list[tuple[int, int]]:
    """Height and width of each unit's input."""
    sizes = []
    for unit in units:
        sizes.append((height, width))
        height, width = -(-height // unit.stride), -(-width // unit.stride)
    return sizes


def _bits(unit: PackedUnit, height: int, width: int) -> int:
    """Words of the signs of a unit's input, zeros at the sides included."""
    padding = unit.weight.shape[2] // 2
    return height * (width + 2 * padding) * (filled(unit.weight.shape[1], WORD) // WORD)
