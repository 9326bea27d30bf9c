"""The path around a packed unit's binary convolution."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bnfree.packing.bits import TernaryWeight
from bnfree.packing.layers import PackedUnit


class Shortcut:
    """Average pooling with stride 2, then the projection, or the unit's factor and repetition.

    The signals here are real, so a binary projection is convolved as a real one, and scaled afterwards as in training.
    """

    def __init__(self, unit: PackedUnit) -> None:
        self.pool = unit.stride == 2
        self.factor = unit.shortcut_scale
        self.repeats = unit.weight.shape[0] // unit.weight.shape[1]
        self.weight: Tensor | None = None
        self.scale: Tensor | None = None
        if isinstance(unit.projection, TernaryWeight):
            self.weight = unit.projection.values().float()
            self.scale = unit.projection.scale.view(1, -1, 1, 1)
        elif unit.projection is not None:
            self.weight = unit.projection.expand()

    def __call__(self, x: Tensor) -> Tensor:
        """What is added to the scaled sums of signs, (N, O, H', W'), for the unit's input (N, I, H, W)."""
        if self.pool:
            x = F.avg_pool2d(x, 2, 2, ceil_mode=True)
        if self.weight is not None:
            x = F.conv2d(x, self.weight)
            return x if self.scale is None else x * self.scale
        if self.factor != 1:
            x = x * self.factor
        return torch.cat([x] * self.repeats, 1) if self.repeats > 1 else x
