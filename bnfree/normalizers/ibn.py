"""IBN-Net's mixture of two normalisations, in a BN-free form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bnfree.errors import InputError
from bnfree.normalizers import declare
from bnfree.normalizers.instance_norm import InstanceNorm

RATIO = 0.5


@declare(standardize_weights=True, scale_branches=True)
class IBN(nn.Module):
    """The first half of the channels instance-normalised, the others scaled and shifted; standardised weights.

    Source: IBN-a of IBN-Net (Pan et al., ECCV 2018, arXiv 1807.09441). Deviations: in place of batch norm the second
    half has its scale and shift alone, and it stands in every stage, the last one included, which the paper leaves to
    batch norm. It has as many parameters as a batch norm.

    Args:
        channels: number of channels, at least 2.

    Shape: (N, C, H, W) to the same; `weight` and `bias` (C - C // 2,) of the second half.

    Raises:
        InputError: fewer than 2 channels; in a forward, a feature map of one position.
    """

    per_image = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels < 2:
            raise InputError(f"norm='ibn' halves the channels, and there is {channels}; take a greater width.")
        self.split = int(channels * RATIO)
        self.instance = InstanceNorm(self.split)
        rest = channels - self.split
        self.weight, self.bias = nn.Parameter(torch.ones(rest)), nn.Parameter(torch.zeros(rest))

    def forward(self, x: Tensor) -> Tensor:
        """`x` (N, C, H, W) with its first half normalised."""
        first, rest = x[:, : self.split], x[:, self.split :]
        scaled = rest * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)
        return torch.cat([self.instance(first), scaled], 1)
