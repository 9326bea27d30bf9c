"""What a packed network holds, in words."""

from __future__ import annotations

import math

from bnfree.packing import PackedNetwork
from bnfree.packing.bits import TernaryWeight
from bnfree.packing.real_weights import PRECISIONS, RealWeight

NAMES = 6


def contents(packed: PackedNetwork, weights: str = "bits") -> list[tuple[str, str]]:
    """Title and text of each line.

    Args:
        packed: the network.
        weights: how its binary weights are stored.
    """
    layers, info = packed.layers, packed.info
    binary: list[TernaryWeight] = []
    real: dict[str, RealWeight] = {"stem": layers.stem.weight, "classifier": layers.classifier.weight}
    for index, unit in enumerate(layers.units):
        binary.append(unit.weight)
        if isinstance(unit.projection, TernaryWeight):
            binary.append(unit.projection)
        elif unit.projection is not None:
            real[f"shortcut {index}"] = unit.projection
    count = sum(math.prod(weight.shape) for weight in binary)
    kept = sum(int(weight.values().count_nonzero()) for weight in binary)
    pruned = f", of which {kept / count:.2%} survive" if kept < count else ""
    forms = {dtype: name for name, dtype in PRECISIONS.items()}
    groups: dict[str, tuple[int, list[str]]] = {}
    for name, weight in real.items():
        form, group = forms[weight.values.dtype], name.split()[0]
        total, members = groups.get(form, (0, []))
        groups[form] = total + weight.values.numel(), [*members, *([group] if group not in members else [])]
    lines = [
        ("network", f"{layers.architecture}, {len(layers.units)} binary units, {packed.num_classes} classes"),
        ("binary weights", f"{count}{pruned}, as {weights}"),
        ("real weights", "; ".join(f"{n} in {form} ({', '.join(names)})" for form, (n, names) in groups.items())),
    ]
    if info.image_shape is not None:
        crop = f", files' shorter side resized to {info.resize}" if info.resize is not None else ""
        lines.append(("images", f"{'x'.join(map(str, info.image_shape))}{crop}"))
    if info.mean is not None and info.std is not None:
        lines.append(("normalisation", f"mean {_numbers(info.mean)}, std {_numbers(info.std)}"))
    if info.class_names is not None:
        more = ", ..." if len(info.class_names) > NAMES else ""
        lines.append(("class names", ", ".join(info.class_names[:NAMES]) + more))
    if info.accuracy is not None:
        lines.append(("accuracy", f"{info.accuracy:.2%} on test images"))
    if info.source_run is not None:
        lines.append(("source", info.source_run))
    return lines


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
