"""A head in which each class is a subspace of the features: Grassmann class representation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnfree.autocast import without_autocast
from bnfree.errors import InputError


class Grassmann(nn.Module):
    """The logit of a class is gamma times the length of the unit feature's projection onto the subspace of the class.

    Source: Wang et al., "Get the best of both worlds: improving accuracy and transferability by Grassmann class
    representation" (ICCV 2023, arXiv 2308.01547), with their 8 dimensions and gamma 25. Deviation: they move the
    orthonormal bases along geodesics with an optimizer of their own; here the basis is the Q of a QR decomposition of
    the weight, so that it is orthonormal after a step of any optimizer, and the length of the weight's columns is free.

    Args:
        features: number of features d.
        num_classes: number of classes K.
        dimensions: of each subspace, at most `features`.
        gamma: scale of the logits, greater than 0.

    Shape: (N, features) to (N, num_classes); `weight` (num_classes, features, dimensions), drawn from a normal law. The
    logits are no linear function of the features: its network cannot be packed.

    Raises:
        InputError: a value out of range.
    """

    def __init__(self, features: int, num_classes: int, dimensions: int = 8, gamma: float = 25.0) -> None:
        super().__init__()
        if not 1 <= dimensions <= features:
            raise InputError(f"dimensions={dimensions} must be at least 1 and at most {features}, the features.")
        if not 0 < gamma < math.inf:
            raise InputError(f"gamma={gamma} must be a finite number greater than 0.")
        self.gamma = gamma
        self.weight = nn.Parameter(torch.randn(num_classes, features, dimensions) * features**-0.5)

    def bases(self) -> Tensor:
        """An orthonormal basis of each subspace in its columns, (num_classes, features, dimensions)."""
        # Not in half precision, for which there is no decomposition.
        with without_autocast(self.weight.device):
            return torch.linalg.qr(self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))).Q

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, num_classes) of features (N, features)."""
        classes, _, dimensions = self.weight.shape
        rows = self.bases().transpose(1, 2).flatten(0, 1).to(features.dtype)
        projected = F.linear(F.normalize(features), rows).view(-1, classes, dimensions)
        return self.gamma * torch.linalg.vector_norm(projected, dim=2)

    def extra_repr(self) -> str:
        """What `print` shows of the layer."""
        classes, features, dimensions = self.weight.shape
        return f"{features}, {classes}, dimensions={dimensions}, gamma={self.gamma:g}"
