"""Efficient local attention: each row and each column of a feature map gets a factor from its neighbours."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bnfree.errors import InputError


class LocalAttention(nn.Module):
    """x * a_h * a_w, where a_h is computed from means over the width along the height, and a_w the other way round.

    a = 2 sigmoid(GroupNorm(convolution along the axis)); the convolution and the norm are shared by both directions.

    Source: Xu and Wan, "ELA: efficient local attention for deep convolutional neural networks" (arXiv 2403.01123):
    kernel 5 or 7, every channel for itself or groups of channels. Deviation: twice the sigmoid, and a norm that starts
    at scale 0, so that all factors are 1 at the start; theirs shrink the map to a quarter, which batch norm mends and
    nothing does here.

    Args:
        channels: number of channels C.
        kernel_size: odd; neighbours along the axis.
        group_size: channels that a channel's factor is made of; 1 (as in their small variants) or 8.
        norm_groups: groups of the norm; where they do not divide the channels, the largest common divisor.

    Shape: (N, C, H, W) to the same; computed for each image.

    Raises:
        InputError: an even kernel size, or groups that do not divide the channels.
    """

    per_image = True

    def __init__(self, channels: int, kernel_size: int = 7, group_size: int = 1, norm_groups: int = 16) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise InputError(f"kernel_size={kernel_size} must be an odd number of at least 1.")
        if group_size < 1 or channels % group_size:
            raise InputError(f"group_size={group_size} must divide the {channels} channels.")
        groups = channels // group_size
        padding = kernel_size // 2
        self.convolution = nn.Conv1d(channels, channels, kernel_size, padding=padding, groups=groups, bias=False)
        self.norm = nn.GroupNorm(math.gcd(norm_groups, channels), channels)
        nn.init.zeros_(self.norm.weight)

    def _factors(self, means: Tensor) -> Tensor:
        return 2 * torch.sigmoid(self.norm(self.convolution(means)))

    def forward(self, x: Tensor) -> Tensor:
        """`x` (N, C, H, W) with each row and each column times its factor."""
        return x * self._factors(x.mean(3)).unsqueeze(3) * self._factors(x.mean(2)).unsqueeze(2)
