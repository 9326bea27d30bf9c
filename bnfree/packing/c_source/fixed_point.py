"""Which whole numbers a network computes with: the ranges of its values, and the powers of two that fit them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bnfree.errors import InputError
from bnfree.packing.bits import TernaryWeight
from bnfree.packing.c_source.arena import BLOCK, UnitPlace
from bnfree.packing.layers import PackedClassifier, PackedLayers, PackedUnit
from bnfree.packing.pixels import Normalization

Reals = NDArray[np.float64]
# 2^29 less what rounding may add: four values can be added in 32 bits.
LARGEST_VALUE = 0.98 * (1 << 29)
LARGEST_SUM = 0.98 * (1 << 31)
LARGEST_WIDE_SUM = 0.98 * (1 << 61)
MOST_BITS = 40
"""No value has more bits behind the point."""


@dataclass(frozen=True)
class FixedUnit:
    """The powers of two of a unit; a value v with `exponent` e stands for v / 2^e."""

    exponent: int
    """Of the output, and of what is added to the sums."""
    pooled_exponent: int
    """Of the shortcut behind average pooling."""
    gain_bits: int
    """A sum of signs is multiplied by 2 to this before its scale, which then is divided by 2^32."""
    slope_bits: int
    """Likewise what a slope multiplies."""
    projection_shift: int
    """A sum of the shortcut's convolution is divided by 2 to this."""


@dataclass(frozen=True)
class FixedPoint:
    """The powers of two of a network."""

    stem_exponent: int
    stem_steps: Reals
    """(O,): what 1 in a sum of the first layer stands for."""
    units: tuple[FixedUnit, ...]
    classifier_bits: int
    """A weight of the classifier is multiplied by 2 to this."""


def fixed_point(layers: PackedLayers, places: Iterable[UnitPlace], normalization: Normalization) -> FixedPoint:
    """The powers of two with which no sum and no value can overflow, whatever the image.

    From the first layer on, the smallest and the largest number that each channel can hold are computed, as if all
    signs could take their worst values at once. Values keep their exponent where a shortcut is the input itself, and
    never get a larger one, so that all factors between exponents fit.

    Args:
        layers: the network.
        places: of its units.
        normalization: of the images.

    Raises:
        InputError: constants that are no numbers, or too large.
    """
    steps, low, high = _stem_range(layers, normalization)
    groups: list[list[int]] = [[]]
    needed = [float(steps.max()) * (1 << 30)]
    ranges = [(low, high)]
    for index, (unit, place) in enumerate(zip(layers.units, places, strict=True)):
        if place.computed:
            groups.append([])
            needed.append(0.0)
        groups[-1].append(index)
        low, high, largest = _unit_range(unit, *ranges[-1])
        ranges.append((low, high))
        needed[-1] = max(needed[-1], largest)
    exponents: list[int] = []
    exponent = MOST_BITS
    for group, largest in zip(groups, needed, strict=True):
        factor = layers.units[group[0]].shortcut_scale if len(exponents) > 0 else 0.0
        exponent -= max(0, _bits_above(abs(factor) / 2))
        exponent = min(exponent, _bits(LARGEST_VALUE, largest))
        exponents.append(exponent)
    by_unit = {index: position for position, group in enumerate(groups) for index in group}
    units = []
    for index, unit in enumerate(layers.units):
        position = by_unit[index]
        before = exponents[position - (index == groups[position][0] and position > 0)]
        units.append(_fixed_unit(unit, ranges[index], before, exponents[position]))
    bits = _classifier_bits(layers.classifier, ranges[-1], exponent)
    return FixedPoint(exponents[0], steps, tuple(units), bits)


def whole(values: ArrayLike, bits: int) -> NDArray[np.int32]:
    """Numbers times 2^bits, rounded to the nearest.

    Raises:
        InputError: one that does not fit into 32 bits.
    """
    numbers = np.rint(np.asarray(values, np.float64) * 2.0**bits)
    if not (np.abs(numbers) < 1 << 31).all():
        raise InputError("c_arithmetic='fixed' needs constants that are finite and not that large; take float.")
    return numbers.astype(np.int32)


def whole_thresholds(values: ArrayLike, bits: int) -> NDArray[np.int32]:
    """What a value times 2^bits must be at least, to be at least a threshold.

    The farthest numbers of 32 bits, which no value reaches, stand for those beyond them.
    """
    numbers = np.ceil(np.asarray(values, np.float64) * 2.0**bits)
    return np.clip(numbers, -(1 << 31), (1 << 31) - 1).astype(np.int32)


def projection_matrix(unit: PackedUnit) -> Reals | None:
    """The convolution of the shortcut, (O, I), without the scale of a binary one."""
    if unit.projection is None:
        return None
    values = unit.projection.values() if isinstance(unit.projection, TernaryWeight) else unit.projection.expand()
    return values.double().numpy()[:, :, 0, 0]


def _stem_range(layers: PackedLayers, normalization: Normalization) -> tuple[Reals, Reals, Reals]:
    """What 1 in a sum stands for, and each channel's smallest and largest output; zeros are around the image."""
    weight = pixel_weights(layers, normalization)
    zero = normalization.zero().numpy()[:, None, None]
    bias = layers.stem.bias.double().numpy()
    farthest = np.maximum(255, np.maximum(np.abs(zero), np.abs(255 - zero)))
    worst = (np.abs(weight) * farthest).sum((1, 2, 3)) + np.abs(bias)
    if not np.isfinite(worst).all() or weight[0].size >= 1 << 13:
        raise InputError("c_arithmetic='fixed' needs a first layer of finite and fewer weights; take float.")
    ends = np.minimum(-zero, 0) * weight, np.maximum(255 - zero, 0) * weight
    low, high = (extreme(*ends).sum((1, 2, 3)) + bias for extreme in (np.minimum, np.maximum))
    return np.where(worst > 0, worst, 1.0) / (1 << 30), low, high


def pixel_weights(layers: PackedLayers, normalization: Normalization) -> Reals:
    """The first layer's weights of 8-bit pixels, (O, I, k, k)."""
    factor = normalization.factor().numpy()[:, None, None]
    return layers.stem.weight.expand().double().numpy() * factor


def _unit_range(unit: PackedUnit, low: Reals, high: Reals) -> tuple[Reals, Reals, float]:
    """Each channel's smallest and largest output, and the largest magnitude on the way there."""
    matrix, repeats = projection_matrix(unit), unit.weight.shape[0] // unit.weight.shape[1]
    if matrix is None:
        ends = [np.tile(end * unit.shortcut_scale, repeats) for end in (low, high)]
        low, high = np.minimum(*ends), np.maximum(*ends)
    else:
        if isinstance(unit.projection, TernaryWeight):
            matrix = matrix * unit.projection.scale.double().numpy()[:, None]
        ends = [matrix * low, matrix * high]
        low, high = np.minimum(*ends).sum(1), np.maximum(*ends).sum(1)
    shift_in, slope, shift_out = unit.rprelu.double().numpy()
    sums = _most_signs(unit) * np.abs(unit.weight.scale.double().numpy())
    # The scale of a filter with few weights must fit beside that of one with many.
    largest = float(_largest_sum(unit) * np.abs(unit.weight.scale.double().numpy()).max())
    largest = max(largest, float((np.maximum(np.abs(low), np.abs(high)) + np.abs(shift_in)).max()))
    low, high = low - sums + shift_in, high + sums + shift_in
    # A slope above 2 leaves fewer bits for what it multiplies.
    largest = max(largest, _magnitude(low, high) * max(1.0, float(np.abs(slope).max())))
    negative = np.minimum(low, 0) * slope, np.minimum(high, 0) * slope
    low = np.minimum(np.minimum(*negative), np.maximum(low, 0))
    high = np.maximum(np.maximum(*negative), np.maximum(high, 0))
    largest = max(largest, _magnitude(low, high), float(np.abs(shift_out).max()))
    low, high = low + shift_out, high + shift_out
    return low, high, max(largest, _magnitude(low, high))


def _fixed_unit(unit: PackedUnit, incoming: tuple[Reals, Reals], before: int, exponent: int) -> FixedUnit:
    magnitudes = np.maximum(np.abs(incoming[0]), np.abs(incoming[1]))
    matrix, pooled, shift = projection_matrix(unit), before, 1
    if isinstance(unit.projection, TernaryWeight):
        pooled = min(before, _bits(LARGEST_SUM, float(magnitudes.sum())))
        scale = unit.projection.scale.double().numpy() * 2.0 ** (exponent - pooled)
        shift = _bits((1 << 31) - 1, float(np.abs(scale).max()))
    elif matrix is not None:
        matrix = np.abs(matrix) * 2.0 ** (exponent - pooled)
        shift = _bits(LARGEST_WIDE_SUM, float((matrix * magnitudes).sum(1).max()) * 2.0**pooled)
        shift = min(shift, _bits((1 << 31) - 1, float(matrix.max())))
    else:
        pooled = exponent
    if shift < 1:
        raise InputError("c_arithmetic='fixed' needs shortcuts with smaller weights; take float.")
    gain = _bits((1 << 31) - 1, _largest_sum(unit))
    slope = max(2, 2 + _bits_above(float(np.abs(unit.rprelu[1].double().numpy()).max()) / 2))
    return FixedUnit(exponent, pooled, gain, slope, min(shift, 60))


def _classifier_bits(classifier: PackedClassifier, incoming: tuple[Reals, Reals], exponent: int) -> int:
    magnitudes = np.maximum(np.abs(incoming[0]), np.abs(incoming[1]))
    weight, bias = np.abs(classifier.weight.expand().double().numpy()), np.abs(classifier.bias.double().numpy())
    largest = float(((weight * magnitudes).sum(1) + bias).max()) * 2.0**exponent
    return min(_bits(LARGEST_WIDE_SUM, largest), _bits((1 << 31) - 1, float(weight.max())))


def _most_signs(unit: PackedUnit) -> Reals:
    """The largest sum of each filter, (O,), at least 1."""
    return np.maximum(np.abs(unit.weight.values().double().numpy()).sum((1, 2, 3)), 1.0)


def _largest_sum(unit: PackedUnit) -> float:
    """The largest sum of a unit, that of the channels which fill a block up included: these count all that differs."""
    outputs, *inputs = unit.weight.shape
    if unit.weight.survivors is None and outputs % BLOCK:
        return 2.0 * math.prod(inputs)
    return float(_most_signs(unit).max())


def _magnitude(low: Reals, high: Reals) -> float:
    return float(np.maximum(np.abs(low), np.abs(high)).max())


def _bits(limit: float, largest: float) -> int:
    """The most bits behind the point with which `largest` stays within a limit.

    Raises:
        InputError: `largest` is no number.
    """
    if not math.isfinite(largest):
        raise InputError("c_arithmetic='fixed' needs constants that are finite; take float.")
    return MOST_BITS if largest < 1e-30 else min(MOST_BITS, math.floor(math.log2(limit / largest)))


def _bits_above(value: float) -> int:
    """The least n with value < 2^n."""
    return math.frexp(value)[1] if value > 0 else 0
