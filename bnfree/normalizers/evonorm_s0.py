"""EvoNorm-S0, a normalisation and activation of each image."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bnfree.normalizers.group_norm import CHANNELS_OF_A_GROUP

EPS = 1e-5


class EvoNormS0(nn.Module):
    """x sigmoid(v x) / std * weight + bias, std over groups of 16 channels and all positions of an image.

    Source: Liu et al., NeurIPS 2020 (arXiv 2004.02967). Deviation: groups of 16 channels in place of 32 groups, as in
    our `group_norm`. The swish is mostly positive, which the thresholds of the next signs have to take up.

    Args:
        channels: number of channels.

    Shape: (N, C, H, W) to the same; `weight` (C,), `bias` (C,), `v` (C,), initially 1, 0, 1.
    """

    per_image = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.groups = channels // math.gcd(channels, CHANNELS_OF_A_GROUP)
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.v = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised and activated `x` (N, C, H, W)."""
        grouped = x.unflatten(1, (self.groups, -1))
        variance = grouped.var((2, 3, 4), correction=0, keepdim=True).expand_as(grouped).flatten(1, 2)
        weight, bias, v = (parameter.view(-1, 1, 1) for parameter in (self.weight, self.bias, self.v))
        return x * torch.sigmoid(v * x) * torch.rsqrt(variance + EPS) * weight + bias
