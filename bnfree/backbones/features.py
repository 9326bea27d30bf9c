"""Which feature maps a network has: one for each stage, the units between two changes of the resolution."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import nn


class Stage(NamedTuple):
    """One stage of a network's body."""

    module: str
    """Name of the module whose output is the stage's feature map."""
    channels: int
    """Channels of the feature map."""
    reduction: int
    """Height of the images / height of the feature map, where it divides."""
    start: int
    """Index in the body of the first module."""
    stop: int
    """Index behind the last one."""


class FeatureInfo(tuple[Stage, ...]):
    """The stages of a network in order; `channels()`, `reduction()` and `module_name()` as of timm's networks."""

    def channels(self) -> list[int]:
        """Channels of each feature map."""
        return [stage.channels for stage in self]

    def reduction(self) -> list[int]:
        """By what height and width of the images are divided in each feature map."""
        return [stage.reduction for stage in self]

    def module_name(self) -> list[str]:
        """Names of the modules whose outputs the feature maps are."""
        return [stage.module for stage in self]


def find_stages(body: nn.Sequential, channels: int, reduction: int, unit_class: type[nn.Module]) -> FeatureInfo:
    """The stages of a body; a module that contains a unit of stride 2 begins one.

    Args:
        body: the body.
        channels: of its input.
        reduction: of its input.
        unit_class: the units, which say their `stride` and `out_channels`.
    """
    found: list[Stage] = []
    for index, module in enumerate(body):
        units: Iterable[nn.Module] = [unit for unit in module.modules() if isinstance(unit, unit_class)]
        stride = 1
        for unit in units:
            stride *= int(unit.stride)  # type: ignore[arg-type]
            channels = int(unit.out_channels)  # type: ignore[arg-type]
        reduction *= stride
        start = index
        if found and stride == 1:
            start = found.pop().start
        found.append(Stage(f"body.{index}", channels, reduction, start, index + 1))
    return FeatureInfo(found)
