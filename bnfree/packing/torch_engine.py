"""A packed residual unit in plain torch: signs unpacked to -1 and +1, convolved as real numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from bnfree.packing.layers import PackedUnit
from bnfree.packing.shortcuts import Shortcut, channels_last


class TorchUnit:
    """Computes a unit with float32 convolutions, which sum signs exactly: no sum comes near 2^24.

    Needs 32 times the memory of the bits. The order of its operations is that of the numba kernels.
    """

    def __init__(self, unit: PackedUnit) -> None:
        self.stride = unit.stride
        self.weight = unit.weight.values().float()
        self.thresholds, self.scale, self.shift_in, self.slope, self.shift_out = (
            vector.view(1, -1, 1, 1) for vector in (unit.thresholds, unit.weight.scale, *unit.rprelu)
        )

    def __call__(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """The unit's output (N, O, H', W') for its input (N, I, H, W) and its shortcut, all float32."""
        signs = (x >= self.thresholds).float().mul_(2).sub_(1)
        sums = F.conv2d(signs, self.weight, None, self.stride, (self.weight.shape[-1] - 1) // 2)
        trunk = sums.mul_(self.scale).add_(shortcut).add_(self.shift_in)
        return channels_last(torch.where(trunk > 0, trunk, trunk * self.slope).add_(self.shift_out))


class TorchUnits:
    """Computes units one behind the other, with their shortcuts."""

    def __init__(self, units: Sequence[PackedUnit]) -> None:
        self.units = [(Shortcut(unit), TorchUnit(unit)) for unit in units]

    def __call__(self, x: Tensor) -> Tensor:
        """The last unit's output (N, O, H', W') for the first one's input `x` (N, I, H, W)."""
        for shortcut, unit in self.units:
            x = unit(x, shortcut(x))
        return x
