"""EvoNorm-B0, a normalisation and activation of the batch and of each image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EPS, MOMENTUM = 1e-5, 0.1


class EvoNormB0(nn.Module):
    """x / max(std of the batch, v x + std of the image) * weight + bias, stds per channel over positions.

    Source: Liu et al., NeurIPS 2020 (arXiv 2004.02967). In evaluation the variance of the batch is its moving average,
    as in batch norm.

    Args:
        channels: number of channels.

    Shape: (N, C, H, W) to the same; `weight`, `bias`, `v` and the buffer `running_var` (C,), initially 1, 0, 1, 1.
    """

    running_var: Tensor
    per_image = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.v = nn.Parameter(torch.ones(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised and activated `x` (N, C, H, W)."""
        variance = self.running_var
        if self.training:
            variance = x.var((0, 2, 3), correction=0)
            count = x.numel() // x.shape[1]
            unbiased = variance.detach() * (count / max(count - 1, 1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), MOMENTUM)
        weight, bias, v, batch = (p.view(-1, 1, 1) for p in (self.weight, self.bias, self.v, variance))
        of_image = (x.var((2, 3), correction=0, keepdim=True) + EPS).sqrt()
        return x / torch.maximum((batch + EPS).sqrt(), v * x + of_image) * weight + bias
