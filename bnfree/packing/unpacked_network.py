"""A packed network as a plain torch module with constant weights: what other formats are made from."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnfree.packing.bits import TernaryWeight
from bnfree.packing.layers import PackedLayers, PackedUnit
from bnfree.packing.real_weights import RealWeight


class UnpackedNetwork(nn.Module):
    """From normalised images (N, C, H, W) to logits (N, num_classes), in float32.

    Nothing is standardised, binarised or scaled when it runs; signs are the numbers -1 and +1. Has buffers and no
    parameters.

    Args:
        layers: constants and bits.
    """

    stem_weight: Tensor
    stem_bias: Tensor
    classifier_weight: Tensor
    classifier_bias: Tensor

    def __init__(self, layers: PackedLayers) -> None:
        super().__init__()
        stem, classifier = layers.stem, layers.classifier
        self.stride, self.pool = stem.stride, stem.pool
        self.register_buffer("stem_weight", stem.weight.expand())
        self.register_buffer("stem_bias", stem.bias.clone())
        self.units = nn.Sequential(*(UnpackedUnit(unit) for unit in layers.units))
        self.register_buffer("classifier_weight", classifier.weight.expand())
        self.register_buffer("classifier_bias", classifier.bias.clone())

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, C, H, W)."""
        padding = (self.stem_weight.shape[-1] - 1) // 2
        x = F.conv2d(images, self.stem_weight, self.stem_bias, self.stride, padding)
        x = F.max_pool2d(x, 3, 2, 1) if self.pool else x
        return F.linear(self.units(x).mean((2, 3)), self.classifier_weight, self.classifier_bias)


class UnpackedUnit(nn.Module):
    """A residual unit, see `bnfree.packing.layers.PackedUnit`."""

    thresholds: Tensor
    weight: Tensor
    scale: Tensor
    shift_in: Tensor
    slope: Tensor
    shift_out: Tensor
    projection: Tensor | None
    projection_scale: Tensor | None

    def __init__(self, unit: PackedUnit) -> None:
        super().__init__()
        self.stride, self.shortcut_scale = unit.stride, unit.shortcut_scale
        self.repeats = unit.weight.shape[0] // unit.weight.shape[1]
        constants = (unit.thresholds, unit.weight.scale, *unit.rprelu)
        for name, vector in zip(("thresholds", "scale", "shift_in", "slope", "shift_out"), constants, strict=True):
            self.register_buffer(name, vector.view(1, -1, 1, 1).clone())
        self.register_buffer("weight", unit.weight.values().float())
        projection, scale = unit.projection, None
        if isinstance(projection, TernaryWeight):
            scale = projection.scale.view(1, -1, 1, 1).clone()
        self.register_buffer("projection", None if projection is None else _real(projection))
        self.register_buffer("projection_scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """Output (N, O, H', W') for an input (N, I, H, W)."""
        trunk = self.sums_of_signs(x) * self.scale + self._shortcut(x) + self.shift_in
        return torch.where(trunk > 0, trunk, trunk * self.slope) + self.shift_out

    def sums_of_signs(self, x: Tensor) -> Tensor:
        """The binary convolution, (N, O, H', W'): whole numbers in float32."""
        signs = torch.where(x >= self.thresholds, 1.0, -1.0)
        return F.conv2d(signs, self.weight, None, self.stride, (self.weight.shape[-1] - 1) // 2)

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 2:
            x = F.avg_pool2d(x, 2, 2, ceil_mode=True)
        if self.projection is not None:
            x = F.conv2d(x, self.projection)
            return x if self.projection_scale is None else x * self.projection_scale
        if self.shortcut_scale != 1:
            x = x * self.shortcut_scale
        return torch.cat([x] * self.repeats, 1) if self.repeats > 1 else x


def _real(weight: TernaryWeight | RealWeight) -> Tensor:
    return weight.values().float() if isinstance(weight, TernaryWeight) else weight.expand()
