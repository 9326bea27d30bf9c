"""Sandwich batch normalisation: one shared scale and shift, and one more for each kind of images.

Source: Gong et al., "Sandwich Batch Normalization" (WACV 2022, arXiv 2102.11382) and its code, whose kinds are clean
and adversarial images. `sandwich_affine` is our BN-free reading: the two scales and shifts, and no statistics.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnfree.errors import InputError
from bnfree.normalizers import declare, refuse_single_values

BRANCHES = 2
CLEAN, ADVERSARIAL = 0, 1


@declare(standardize_weights=True, scale_branches=True)
class SandwichAffine(nn.Module):
    """weight_k * (weight * x + bias) + bias_k, where k is the branch that is switched to; standardised weights.

    Args:
        channels: number of channels C.

    Shape: (N, C, H, W) to the same; `weight`, `bias` (C,), initially 1 and 0; `branch_weight` (2, C), initially normal
    around 1 with deviation 0.02, and `branch_bias` (2, C), 0.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = CLEAN
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.branch_weight = nn.Parameter(torch.empty(BRANCHES, channels).normal_(1, 0.02))
        self.branch_bias = nn.Parameter(torch.zeros(BRANCHES, channels))

    def affine(self) -> tuple[Tensor, Tensor]:
        """Factor and shift (C,) of both together."""
        weight, bias = self.branch_weight[self.branch], self.branch_bias[self.branch]
        return weight * self.weight, weight * self.bias + bias

    def forward(self, x: Tensor) -> Tensor:
        """Scaled and shifted `x` (N, C, H, W)."""
        factor, shift = self.affine()
        return x * factor.view(-1, 1, 1) + shift.view(-1, 1, 1)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Factor and shift of the branch that is switched to."""
        return self.affine()


@declare()
class SandwichBatchNorm(SandwichAffine):
    """Batch norm with statistics of each branch in front of the two scales and shifts; plain weights.

    Args:
        channels: number of channels C.

    Shape: as `SandwichAffine`; buffers `running_mean` and `running_var` (2, C), initially 0 and 1.

    Raises:
        InputError: in training, one image of one position.
    """

    eps, momentum = 1e-5, 0.1
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.register_buffer("running_mean", torch.zeros(BRANCHES, channels))
        self.register_buffer("running_var", torch.ones(BRANCHES, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised `x` (N, C, H, W)."""
        if self.training:
            refuse_single_values(x, "sandwich", per_image=False)
        mean, variance = self.running_mean[self.branch], self.running_var[self.branch]
        return F.batch_norm(x, mean, variance, *self.affine(), self.training, self.momentum, self.eps)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Factor and shift with the moving statistics of the branch that is switched to."""
        factor, shift = (value.double() for value in self.affine())
        factor = factor / (self.running_var[self.branch].double() + self.eps).sqrt()
        return factor, shift - self.running_mean[self.branch].double() * factor


def set_branch(network: nn.Module, branch: int) -> None:
    """Switches all sandwich normalisers of a network to a branch: `CLEAN` 0 or `ADVERSARIAL` 1.

    Parameters of the other branch get a gradient of 0 from what follows.

    Raises:
        InputError: another branch, or a network without any.
    """
    if branch not in range(BRANCHES):
        raise InputError(f"branch={branch} is not known; choose 0 (clean) or 1 (adversarial).")
    found: list[Any] = [module for module in network.modules() if isinstance(module, SandwichAffine)]
    if not found:
        raise InputError("network has no branches to switch; build it with norm='sandwich' or 'sandwich_affine'.")
    for module in found:
        module.branch = branch
