"""Which tensors a file holds: layers -> (layout, tensors) and back.

The layout is a table of plain values. It fixes name, dtype and shape of every tensor, so that a file is compared with
what it claims before anything of it is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from bnfree.errors import InputError
from bnfree.packing.bits import (
    DIGITS_PER_BYTE,
    TernaryWeight,
    pack_bits,
    pack_digits,
    unpack_bits,
    unpack_digits,
)
from bnfree.packing.layers import PackedClassifier, PackedLayers, PackedStem, PackedUnit
from bnfree.packing.real_weights import PRECISIONS, RealWeight

MaskForm = Literal["planes", "digits"]
# Wide enough for every network of the kind, and small enough that no file asks for much more memory than its own size:
# the runtime gives each tap of a narrow kernel 64 channels.
LARGEST_KERNEL = 7
LARGEST_CHANNELS = 1 << 20
# Weights that a file leaves out take memory all the same. Five times those of a ReActNet-A.
LARGEST_LEFT_OUT = 1 << 27


class Expected(NamedTuple):
    """A tensor that a layout asks for."""

    dtype: torch.dtype
    shape: tuple[int, ...]


def store(layers: PackedLayers, masks: MaskForm) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The layout and the tensors of a network.

    Args:
        layers: the network.
        masks: form of pruned binary weights, see `PackedNetwork.save`.

    Raises:
        InputError: unknown form of masks.
    """
    if masks not in ("planes", "digits"):
        raise InputError(f"masks={masks!r} is not known; choose 'planes' or 'digits'.")
    tensors: dict[str, Tensor] = {}

    def weight(name: str, weight: TernaryWeight | RealWeight) -> dict[str, Any]:
        if isinstance(weight, RealWeight):
            tensors.update({f"{name}.weight": weight.values, f"{name}.scale": weight.scale})
            form = next(form for form, dtype in PRECISIONS.items() if dtype == weight.values.dtype)
            return {"form": form, "shape": list(weight.values.shape)}
        entry: dict[str, Any] = {"shape": list(weight.shape)}
        stored = weight.without_silent_filters()
        if stored.shape != weight.shape:
            tensors[f"{name}.filters"] = pack_bits(weight.scale != 0)
            entry["filters"] = stored.shape[0]
        tensors[f"{name}.scale"] = stored.scale
        if stored.survivors is not None and masks == "digits":
            tensors[f"{name}.digits"] = pack_digits(stored.values().flatten())
            return {"form": "digits", **entry}
        tensors[f"{name}.signs"] = stored.signs
        if stored.survivors is None:
            return {"form": "signs", **entry}
        tensors[f"{name}.survivors"] = stored.survivors
        return {"form": "planes", **entry}

    stem, classifier = layers.stem, layers.classifier
    layout: dict[str, Any] = {
        "architecture": layers.architecture,
        "stem": {**weight("stem", stem.weight), "stride": stem.stride, "pool": stem.pool},
        "units": [],
        "classifier": weight("classifier", classifier.weight),
    }
    tensors |= {"stem.bias": stem.bias, "classifier.bias": classifier.bias}
    for index, unit in enumerate(layers.units):
        name = f"units.{index}"
        row = {**weight(name, unit.weight), "stride": unit.stride, "shortcut_scale": unit.shortcut_scale}
        if unit.projection is not None:
            projection = weight(f"{name}.projection", unit.projection)
            row["projection"] = projection["form"]
            if "filters" in projection:
                row["projection_filters"] = projection["filters"]
        tensors |= {f"{name}.thresholds": unit.thresholds, f"{name}.rprelu": unit.rprelu}
        layout["units"].append(row)
    return layout, tensors


def expected_tensors(layout: Any) -> dict[str, Expected]:
    """Every tensor of a network with this layout, after checking that its layers fit together.

    Args:
        layout: as read from a file, of any kind.

    Raises:
        InputError: no layout of a network; the message goes on after the name of the file.
    """
    expected: dict[str, Expected] = {}
    left_out = 0

    def weight(name: str, form: Any, shape: tuple[int, ...], forms: tuple[str, ...], filters: Any = None) -> None:
        nonlocal left_out
        if not isinstance(form, str) or form not in forms:
            raise InputError(f"its layout has the form {form!r} for {name}, which is none of {', '.join(forms)}.")
        if filters is not None:
            if form in PRECISIONS:
                raise InputError(f"its layout leaves out filters of {name}, which has real weights.")
            filters = _integer(filters, f"{name}.filters", shape[0] - 1, smallest=0)
            expected[f"{name}.filters"] = Expected(torch.uint8, (-(-shape[0] // 8),))
            left_out += math.prod(shape) // shape[0] * (shape[0] - filters)
            shape = filters, *shape[1:]
        count = math.prod(shape)
        expected[f"{name}.scale"] = Expected(torch.float32, shape[:1])
        if form in PRECISIONS:
            expected[f"{name}.weight"] = Expected(PRECISIONS[form], shape)
        elif form == "digits":
            expected[f"{name}.digits"] = Expected(torch.uint8, (-(-count // DIGITS_PER_BYTE),))
        else:
            for plane in ("signs", "survivors") if form == "planes" else ("signs",):
                expected[f"{name}.{plane}"] = Expected(torch.uint8, (-(-count // 8),))

    real, ternary = tuple(PRECISIONS), ("signs", "planes", "digits")
    table = _table(layout, "layout", {"architecture", "stem", "units", "classifier"})
    if not isinstance(table["architecture"], str):
        raise InputError("its layout has an architecture that is not a string.")
    stem = _table(table["stem"], "stem", {"form", "shape", "stride", "pool"})
    shape = _kernel(stem["shape"], "stem")
    weight("stem", stem["form"], shape, real)
    expected["stem.bias"] = Expected(torch.float32, shape[:1])
    if not isinstance(stem["pool"], bool):
        raise InputError("its layout has a stem whose pool is neither true nor false.")
    _integer(stem["stride"], "stem.stride", 4)
    channels = shape[0]
    if not isinstance(table["units"], list):
        raise InputError("its layout has units that are not a list.")
    for index, entry in enumerate(table["units"]):
        name = f"units.{index}"
        optional = {"projection", "filters", "projection_filters"}
        unit = _table(entry, name, {"form", "shape", "stride", "shortcut_scale"}, optional)
        shape = _kernel(unit["shape"], name)
        weight(name, unit["form"], shape, ternary, unit.get("filters"))
        expected[f"{name}.thresholds"] = Expected(torch.float32, shape[1:2])
        expected[f"{name}.rprelu"] = Expected(torch.float32, (3, shape[0]))
        _integer(unit["stride"], f"{name}.stride", 2)
        scale = unit["shortcut_scale"]
        if not isinstance(scale, float) or not math.isfinite(scale):
            raise InputError(f"its layout has the shortcut_scale {scale!r} in {name}, which is not a finite number.")
        if "projection" in unit:
            of_projection = unit.get("projection_filters")
            weight(f"{name}.projection", unit["projection"], (*shape[:2], 1, 1), (*ternary, *real), of_projection)
        elif "projection_filters" in unit:
            raise InputError(f"its layout has projection_filters in {name}, which has no projection.")
        elif shape[0] % shape[1]:
            raise InputError(f"its layout has no shortcut from {shape[1]} to {shape[0]} channels in {name}.")
        if shape[1] != channels:
            raise InputError(f"its layout has {channels} channels in front of {name}, which takes {shape[1]}.")
        channels = shape[0]
    if left_out > LARGEST_LEFT_OUT:
        raise InputError(f"its layout leaves out {left_out} weights; at most {LARGEST_LEFT_OUT} may be left out.")
    classifier = _table(table["classifier"], "classifier", {"form", "shape"})
    shape = _shape(classifier["shape"], "classifier", 2)
    if shape[1] != channels:
        raise InputError(f"its layout has {channels} channels in front of the classifier, which takes {shape[1]}.")
    weight("classifier", classifier["form"], shape, real)
    expected["classifier.bias"] = Expected(torch.float32, shape[:1])
    return expected


def restore(layout: dict[str, Any], tensors: Callable[[str], Tensor]) -> PackedLayers:
    """The network of a layout that `expected_tensors` has accepted.

    Args:
        layout: the layout.
        tensors: gives a tensor, of the expected dtype and shape, by its name.

    Raises:
        InputError: bytes that are no ternary digits, or filters that are not as many as the layout says.
    """

    def real(name: str) -> RealWeight:
        return RealWeight(tensors(f"{name}.weight"), tensors(f"{name}.scale"))

    def ternary(name: str, form: str, shape: tuple[int, int, int, int], filters: int | None) -> TernaryWeight:
        if filters is not None:
            there = unpack_bits(tensors(f"{name}.filters"), shape[0])
            if int(there.sum()) != filters:
                raise InputError(f"its {name}.filters are {int(there.sum())} in place of {filters}.")
            return ternary(name, form, (filters, *shape[1:]), None).with_silent_filters(there)
        scale = tensors(f"{name}.scale")
        if form == "digits":
            values = unpack_digits(tensors(f"{name}.digits"), math.prod(shape))
            return TernaryWeight.from_values(values.view(shape), scale)
        survivors = tensors(f"{name}.survivors") if form == "planes" else None
        return TernaryWeight(shape, tensors(f"{name}.signs"), survivors, scale)

    units = []
    for index, row in enumerate(layout["units"]):
        name = f"units.{index}"
        out_channels, in_channels, kernel_size, _ = row["shape"]
        shape = out_channels, in_channels, kernel_size, kernel_size
        projection: TernaryWeight | RealWeight | None = None
        if "projection" in row:
            of_projection = f"{name}.projection"
            if row["projection"] in PRECISIONS:
                projection = real(of_projection)
            else:
                shape_of_it = out_channels, in_channels, 1, 1
                projection = ternary(of_projection, row["projection"], shape_of_it, row.get("projection_filters"))
        units.append(
            PackedUnit(
                thresholds=tensors(f"{name}.thresholds"),
                weight=ternary(name, row["form"], shape, row.get("filters")),
                rprelu=tensors(f"{name}.rprelu"),
                stride=row["stride"],
                projection=projection,
                shortcut_scale=row["shortcut_scale"],
            )
        )
    stem = layout["stem"]
    return PackedLayers(
        architecture=layout["architecture"],
        stem=PackedStem(real("stem"), tensors("stem.bias"), stem["stride"], stem["pool"]),
        units=tuple(units),
        classifier=PackedClassifier(real("classifier"), tensors("classifier.bias")),
    )


def _table(value: Any, name: str, keys: set[str], optional: set[str] | None = None) -> dict[str, Any]:
    if not isinstance(value, dict) or not keys <= set(value) <= keys | (optional or set()):
        raise InputError(f"its {name} is not a table of {', '.join(sorted(keys))}.")
    return value


def _kernel(value: Any, name: str) -> tuple[int, ...]:
    shape = _shape(value, name, 4)
    if shape[2] != shape[3] or shape[2] % 2 == 0 or shape[2] > LARGEST_KERNEL:
        raise InputError(
            f"its {name} has a kernel of {shape[2:]}; it must be square, odd and at most {LARGEST_KERNEL}."
        )
    return shape


def _shape(value: Any, name: str, length: int) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) != length:
        raise InputError(f"its {name} has a shape that is not a list of {length} sizes.")
    return tuple(_integer(size, f"{name}.shape", LARGEST_CHANNELS) for size in value)


def _integer(value: Any, name: str, largest: int, smallest: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not smallest <= value <= largest:
        raise InputError(f"its {name} is not an integer from {smallest} to {largest}.")
    return value
