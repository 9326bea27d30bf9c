"""Packed networks in plain torch: signs unpacked to -1 and +1, convolved as real numbers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bnfree.packing.layers import PackedLayers, PackedUnit
from bnfree.packing.shortcuts import Shortcut


class TorchUnit:
    """Computes a unit with float32 convolutions, which sum signs exactly: no sum comes near 2^24.

    Needs 32 times the memory of the bits. The order of its operations is that of the numba engine.
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
        return torch.where(trunk > 0, trunk, trunk * self.slope).add_(self.shift_out)


class TorchNetwork:
    """Computes a network up to its last unit."""

    def __init__(self, layers: PackedLayers) -> None:
        self.stem = layers.stem
        self.stem_weight = layers.stem.weight.expand().contiguous(memory_format=torch.channels_last)
        self.units = [(Shortcut(unit), TorchUnit(unit)) for unit in layers.units]

    def __call__(self, images: Tensor) -> Tensor:
        """The last unit's output (N, O, H', W') for images (N, C, H, W), float32."""
        x = images.contiguous(memory_format=torch.channels_last)
        padding = (self.stem_weight.shape[-1] - 1) // 2
        x = F.conv2d(x, self.stem_weight, self.stem.bias, self.stem.stride, padding)
        x = F.max_pool2d(x, 3, 2, 1) if self.stem.pool else x
        for shortcut, unit in self.units:
            x = unit(x, shortcut(x))
        return x
