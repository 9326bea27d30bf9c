"""The constants between the sums of signs, in float32 or as whole numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bnfree.packing.bits import TernaryWeight
from bnfree.packing.c_source.arena import BLOCK, Arena, filled
from bnfree.packing.c_source.fixed_point import (
    fixed_point,
    pixel_weights,
    projection_matrix,
    whole,
    whole_thresholds,
)
from bnfree.packing.c_source.tables import Tables
from bnfree.packing.layers import PackedLayers, PackedUnit
from bnfree.packing.numba_layout import UnitLayout, tap_cases
from bnfree.packing.numba_layout import filled as filled_array
from bnfree.packing.numba_pixel_layout import PixelLayout, fits
from bnfree.packing.pixels import Normalization

CArithmetic = Literal["float", "fixed"]
CONSTANTS, SHORTCUTS, STEM, CLASSIFIER = (
    "scales, shifts, slopes, thresholds", "shortcuts' 1x1 convolutions", "first layer", "classifier",
)  # fmt: skip


class Arithmetic(ABC):
    """What a network computes with; every method adds its arrays to the tables.

    Args:
        layers: the network.
        arena: where its activations lie.
        shape: of the images, (C, H, W).
        normalization: of the images.
        tables: the file's arrays.
    """

    number: str
    """The type of values and constants, in C."""

    def __init__(
        self,
        layers: PackedLayers,
        arena: Arena,
        shape: tuple[int, int, int],
        normalization: Normalization,
        tables: Tables,
    ) -> None:
        self.layers, self.arena, self.shape, self.normalization, self.tables = (
            layers, arena, shape, normalization, tables,
        )  # fmt: skip
        self.stem_blocks = filled(len(layers.stem.bias)) // BLOCK

    @abstractmethod
    def stem(self) -> dict[str, int]:
        """The first layer and the first unit's thresholds; gives macros."""

    @abstractmethod
    def unit(self, index: int, layout: UnitLayout, blocks: int) -> dict[str, str]:
        """A unit; gives fields of `struct unit`."""

    @abstractmethod
    def classifier(self) -> dict[str, int]:
        """Global average pooling and the linear layer; gives macros."""

    def _cases(self) -> tuple[dict[str, int], list[list[tuple[int, int]]]]:
        """Which taps of the first layer meet the image; gives macros, and the cases of rows and of columns."""
        stem = self.layers.stem
        size = stem.weight.values.shape[-1]
        (row_cases, rows), (column_cases, columns) = (tap_cases(s, size, stem.stride) for s in self.shape[1:])
        self.tables.add("stem_row_cases", STEM, rows.astype(np.uint8))
        self.tables.add("stem_column_cases", STEM, columns.astype(np.uint8))
        return {"STEM_OF_INTEGERS": 1, "STEM_COLUMN_CASES": len(column_cases)}, [row_cases, column_cases]

    def _taps(self, taps: NDArray[np.int64]) -> None:
        """Weights of pixels, (rows, columns, C, O)."""
        low = (taps + 128) % 256 - 128
        self.tables.add("stem_upper", STEM, blocked((taps - low) // 256, self.stem_blocks).astype(np.int16))
        self.tables.add("stem_lower", STEM, blocked(low, self.stem_blocks).astype(np.int8))

    def _signs(self, name: str, unit: PackedUnit, blocks: int) -> dict[str, str]:
        """The binary convolution of a shortcut, 16 outputs a number."""
        values = blocked(np.rint(np.asarray(projection_matrix(unit))).T, blocks).astype(np.int64)
        places = 1 << np.arange(BLOCK)
        return {
            key: self.tables.share(f"{name}_{key}", SHORTCUTS, (bits * places).sum(-1).astype(np.uint16))
            for key, bits in (("signs", values > 0), ("survivors", values != 0))
        }


class FloatArithmetic(Arithmetic):
    """float32, rounded as in the numba engine."""

    number = "float"

    def stem(self) -> dict[str, int]:
        """The first layer and the first unit's thresholds; gives macros."""
        stem, tables, blocks = self.layers.stem, self.tables, self.stem_blocks
        thresholds = np.full(blocks * BLOCK, np.finfo(np.float32).max, np.float32)
        first = self.layers.units[0]
        thresholds[: len(first.thresholds)] = first.thresholds.numpy()
        tables.add("first_thresholds", CONSTANTS, thresholds)
        if not fits(stem, self.normalization):
            weight = stem.weight.expand().permute(2, 3, 1, 0).numpy()
            tables.add("stem_weights", STEM, blocked(weight, blocks))
            tables.add("stem_bias", STEM, filled_array(stem.bias.numpy(), 0, blocks * BLOCK))
            tables.add("stem_zero", STEM, self.normalization.zero().float().numpy())
            tables.add("stem_factor", STEM, self.normalization.factor().float().numpy())
            return {"STEM_OF_INTEGERS": 0}
        layout = PixelLayout(stem, self.normalization)
        size, channels = layout.kernel_size, layout.channels
        # (O, columns, rows, C), as the layout has them, to (rows, columns, C, O).
        self._taps(layout.taps.reshape(-1, size, size, channels).transpose(2, 1, 3, 0))
        macros, cases = self._cases()
        base, rest = layout.base(*cases)
        tables.add("stem_base", STEM, base[..., : blocks * BLOCK])
        tables.add("stem_rest", STEM, rest[..., : blocks * BLOCK])
        tables.add("stem_scale", STEM, layout.scales[: blocks * BLOCK])
        return macros

    def unit(self, index: int, layout: UnitLayout, blocks: int) -> dict[str, str]:
        """A unit; gives fields of `struct unit`."""
        unit, name = layout.unit, f"unit{index}"
        constants = layout.constants.transpose(1, 0, 2).reshape(5, -1)[:, : blocks * BLOCK]
        constants = np.where(np.isinf(constants), np.finfo(np.float32).max, constants)
        fields = {
            "constants": self.tables.add(f"{name}_constants", CONSTANTS, _by_block(constants, blocks)),
            "factor": f"{float(unit.shortcut_scale):.9e}f",
        }
        if unit.projection is None:
            return fields
        scale = np.ones(unit.weight.shape[0], np.float32)
        if isinstance(unit.projection, TernaryWeight):
            fields |= self._signs(name, unit, blocks)
            scale = unit.projection.scale.numpy()
        else:
            weight = unit.projection.expand().numpy()[:, :, 0, 0].T
            fields["projection"] = self.tables.add(f"{name}_projection", SHORTCUTS, blocked(weight, blocks))
        scales = filled_array(scale, 0, blocks * BLOCK)
        fields["projection_scale"] = self.tables.add(f"{name}_projection_scale", SHORTCUTS, scales)
        return fields

    def classifier(self) -> dict[str, int]:
        """Global average pooling and the linear layer; gives macros."""
        self.tables.add("classifier_weights", CLASSIFIER, self.layers.classifier.weight.expand().numpy())
        self.tables.add("classifier_bias", CLASSIFIER, self.layers.classifier.bias.numpy())
        return {}


class FixedArithmetic(Arithmetic):
    """Whole numbers of 32 bits, see `fixed_point`."""

    number = "int32_t"

    def __init__(
        self,
        layers: PackedLayers,
        arena: Arena,
        shape: tuple[int, int, int],
        normalization: Normalization,
        tables: Tables,
    ) -> None:
        super().__init__(layers, arena, shape, normalization, tables)
        self.powers = fixed_point(layers, arena.units, normalization)

    def stem(self) -> dict[str, int]:
        """The first layer and the first unit's thresholds; gives macros."""
        stem, tables, size = self.layers.stem, self.tables, self.stem_blocks * BLOCK
        powers = self.powers
        thresholds = whole_thresholds(self.layers.units[0].thresholds.numpy(), powers.stem_exponent)
        tables.add("first_thresholds", CONSTANTS, _filled_thresholds(thresholds, size))
        weight = pixel_weights(self.layers, self.normalization)
        taps = weight.reshape(len(weight), -1) / powers.stem_steps[:, None]
        # What rounding takes from a tap, the next one gets: neighbours in an image are alike.
        taps = np.diff(np.rint(taps.cumsum(1)), axis=1, prepend=0).astype(np.int64).reshape(weight.shape)
        self._taps(taps.transpose(2, 3, 1, 0))
        macros, (rows, columns) = self._cases()
        zero, bias = self.normalization.zero().numpy(), stem.bias.double().numpy() / powers.stem_steps
        base = np.zeros((len(rows), len(columns), size), np.int32)
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                met = taps[:, :, slice(*row), slice(*column)].sum((2, 3))
                base[i, j, : len(met)] = np.rint(bias - met @ zero)
        tables.add("stem_base", STEM, base)
        scale = whole(powers.stem_steps, powers.stem_exponent + 32)
        tables.add("stem_scale", STEM, filled_array(scale, 0, size))
        return macros

    def unit(self, index: int, layout: UnitLayout, blocks: int) -> dict[str, str]:
        """A unit; gives fields of `struct unit`."""
        unit, name, powers = layout.unit, f"unit{index}", self.powers.units[index]
        exponent, size = powers.exponent, blocks * BLOCK
        shift_in, slope, shift_out = unit.rprelu.numpy()
        rows = [
            whole(unit.weight.scale.numpy(), exponent + 32 - powers.gain_bits), whole(shift_in, exponent),
            whole(slope, 32 - powers.slope_bits), whole(shift_out, exponent),
        ]  # fmt: skip
        following = np.zeros(0) if layout.following is None else layout.following.thresholds.numpy()
        thresholds = _filled_thresholds(whole_thresholds(following, exponent), size)
        constants = np.stack([*(filled_array(row, 0, size) for row in rows), thresholds])
        before = self.powers.units[index - 1].exponent if index > 0 else self.powers.stem_exponent
        factor = whole(unit.shortcut_scale, 30 + powers.pooled_exponent - before)
        fields = {
            "constants": self.tables.add(f"{name}_constants", CONSTANTS, _by_block(constants, blocks)),
            "factor": f"{factor}", "gain": f"{1 << powers.gain_bits}", "slope_gain": f"{1 << powers.slope_bits}",
            "projection_shift": f"{powers.projection_shift}",
        }  # fmt: skip
        bits = exponent - powers.pooled_exponent + powers.projection_shift
        if isinstance(unit.projection, TernaryWeight):
            fields |= self._signs(name, unit, blocks)
            scale = filled_array(whole(unit.projection.scale.numpy(), bits), 0, size)
            fields["projection_scale"] = self.tables.add(f"{name}_projection_scale", SHORTCUTS, scale)
        elif unit.projection is not None:
            weight = whole(np.asarray(projection_matrix(unit)).T, bits)
            fields["projection"] = self.tables.add(f"{name}_projection", SHORTCUTS, blocked(weight, blocks))
        return fields

    def classifier(self) -> dict[str, int]:
        """Global average pooling and the linear layer; gives macros."""
        classifier, powers = self.layers.classifier, self.powers
        bits = powers.units[-1].exponent + powers.classifier_bits
        bias = np.rint(classifier.bias.double().numpy() * 2.0**bits).astype(np.int64)
        weight = whole(classifier.weight.expand().numpy(), powers.classifier_bits)
        self.tables.add("classifier_weights", CLASSIFIER, weight)
        self.tables.add("classifier_bias", CLASSIFIER, bias)
        self.tables.add("logit_step", CLASSIFIER, np.array([2.0**-bits], np.float32))
        last = self.arena.units[-1]
        return {"MEAN_FACTOR": round(2**32 / (last.rows * last.columns))}


ARITHMETICS: dict[CArithmetic, type[Arithmetic]] = {"float": FloatArithmetic, "fixed": FixedArithmetic}


def blocked(values: NDArray[np.generic], blocks: int) -> NDArray[np.generic]:
    """(..., O) as (blocks, ..., 16)."""
    full = filled_array(values, values.ndim - 1, blocks * BLOCK)
    return np.moveaxis(full.reshape(*values.shape[:-1], blocks, BLOCK), -2, 0)


def _by_block(constants: NDArray[np.generic], blocks: int) -> NDArray[np.generic]:
    """(5, O) as (blocks, 5, 16)."""
    return constants.reshape(5, blocks, BLOCK).transpose(1, 0, 2)


def _filled_thresholds(thresholds: NDArray[np.int32], size: int) -> NDArray[np.int32]:
    """With thresholds that nothing reaches for the channels that fill a block up."""
    return np.pad(thresholds, (0, size - len(thresholds)), constant_values=(1 << 31) - 1)
