"""A packed residual unit in plain torch: signs unpacked to -1 and +1, convolved as real numbers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bnfree.packing.layers import PackedUnit


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
        return _channels_last(torch.where(trunk > 0, trunk, trunk * self.slope).add_(self.shift_out))


def _channels_last(x: Tensor) -> Tensor:
    # Where a size is 1, torch takes several strides for channels-last and computes what follows one way or the other,
    # which rounds differently; those of the numba engine are these.
    channels, height, width = x.shape[1:]
    strides = (height * width * channels, 1, width * channels, channels)
    return x.permute(0, 2, 3, 1).contiguous().as_strided(x.shape, strides)
