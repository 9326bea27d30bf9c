"""A packed network with its binary convolutions in 8 bits, by oneDNN inside torch: what can be had without packing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bnfree.packing.layers import PackedLayers, PackedUnit
from bnfree.packing.unpacked_network import UnpackedNetwork, UnpackedUnit


class Int8Network(UnpackedNetwork):
    """The same numbers as `UnpackedNetwork`: sums of signs are exact in 8 bits too.

    Args:
        layers: constants and bits.

    Raises:
        AttributeError, RuntimeError: this torch has no such convolution.
    """

    def __init__(self, layers: PackedLayers) -> None:
        super().__init__(layers)
        self.units = nn.Sequential(*(Int8Unit(unit) for unit in layers.units))


class Int8Unit(UnpackedUnit):
    """A unit whose signs are 0 and 2 with the zero point 1, so that zero padding is exact."""

    def __init__(self, unit: PackedUnit) -> None:
        super().__init__(unit)
        out_channels, padding = unit.weight.shape[0], [(unit.weight.shape[-1] - 1) // 2] * 2
        self.geometry = ([unit.stride] * 2, padding, [1, 1], 1)
        self.ones, self.zeros = torch.ones(out_channels), torch.zeros(out_channels, dtype=torch.int64)
        self.packed_weight = torch.ops.onednn.qconv_prepack(
            unit.weight.values(), self.ones, 1.0, 1, *self.geometry, None
        )
        self.weight = torch.empty(0)

    def sums_of_signs(self, x: Tensor) -> Tensor:
        """The binary convolution, (N, O, H', W')."""
        signs = (x >= self.thresholds).to(torch.uint8).mul_(2).contiguous(memory_format=torch.channels_last)
        sums: Tensor = torch.ops.onednn.qconv2d_pointwise(
            signs, 1.0, 1, self.packed_weight, self.ones, self.zeros, None, *self.geometry, 1.0, 0, torch.float32,
            "none", [], "",
        )  # fmt: skip
        return sums
