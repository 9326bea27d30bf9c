"""Root-mean-square normalisation of feature maps (Zhang and Sennrich, arXiv 1910.07467, over an image)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EPS = 1e-5


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-5) * weight + bias, the mean over channels and positions of an image.

    A layer norm without its mean, with the scale and the shift per channel of the other normalisers.

    Args:
        channels: number of channels.

    Shape: (N, C, H, W) to the same; `weight` (C,), initially 1, and `bias` (C,), initially 0.
    """

    per_image = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised `x` (N, C, H, W)."""
        inverse = torch.rsqrt(x.square().mean((1, 2, 3), keepdim=True) + EPS)
        return x * inverse * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)
