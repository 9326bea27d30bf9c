"""The weight compander: latent weights of bounded size that are pushed away from zero.

Source: "Weight Compander: A Simple Weight Reparameterization for Regularization" (2023), as its abstract describes it;
the initial a and b are ours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Compander(nn.Module):
    """w = a * arctan(v / b), with one learned a and b for a layer, initially 1.

    |w| < a pi / 2, and dw/dv = (a / b) / (1 + (v / b)^2), so that large latent weights move less. Signs stay those of
    v: in a binary layer without standardisation only the gradient and the scale change. Standardised weights do not
    depend on a, whose gradient is then 0 up to rounding; b still bends them.

    Shape: any to the same; `a` and `b` ().
    """

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight of a latent one."""
        return self.a * torch.atan(weight / self.b)
