"""Batch-channel normalisation with estimated batch statistics, and group norm on standardised weights.

Source: Qiao et al., "Weight Standardization" and "Rethinking Normalization and Elimination Singularity in Neural
Networks" (arXiv 1903.10520, 1911.09738) with their code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnfree.normalizers import declare
from bnfree.normalizers.group_norm import CHANNELS_OF_A_GROUP, GroupNorm

EPS, MOMENTUM = 1e-5, 0.1


@declare(standardize_weights=True)
class WSGroupNorm(GroupNorm):
    """Group norm behind standardised weights.

    Plain weight standardisation has no factor 1 / sqrt(fan-in), as ours has; group norm takes it out again.

    Args:
        channels: number of channels.
    """


@declare(standardize_weights=True)
class BatchChannelNorm(nn.Module):
    """Normalisation by estimated statistics of the batches, then by those of groups of 16 channels of each image.

    The first one is a batch norm whose moving averages are used in training, too, and get no gradient, so that it works
    with one image; the second has one scale and one shift for each group, as in the code. Behind standardised weights.
    Deviation: groups of 16 channels in place of 32 groups, as in our `group_norm`.

    Args:
        channels: number of channels C.

    Shape: (N, C, H, W) to the same; `weight`, `bias` and the buffers `running_mean`, `running_var` (C,), initially 1,
    0, 0, 1; `group_weight`, `group_bias` (groups,), 1 and 0.
    """

    running_mean: Tensor
    running_var: Tensor
    per_image = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.groups = channels // math.gcd(channels, CHANNELS_OF_A_GROUP)
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.group_weight, self.group_bias = (
            nn.Parameter(torch.ones(self.groups)),
            nn.Parameter(torch.zeros(self.groups)),
        )
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised `x` (N, C, H, W)."""
        if self.training:
            self._estimate(x.detach())
        # Clones, since the buffers go on before the backward pass where batches are accumulated.
        mean, variance = self.running_mean.clone(), self.running_var.clone()
        x = F.batch_norm(x, mean, variance, self.weight, self.bias, False, 0.0, EPS)
        grouped = F.group_norm(x, self.groups, eps=EPS).unflatten(1, (self.groups, -1))
        weight, bias = (p.view(-1, 1, 1, 1) for p in (self.group_weight, self.group_bias))
        return (grouped * weight + bias).flatten(1, 2)

    @torch.no_grad()
    def _estimate(self, x: Tensor) -> None:
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), MOMENTUM)
        self.running_var.lerp_(variance.to(self.running_var.dtype), MOMENTUM)
