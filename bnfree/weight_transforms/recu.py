"""ReCU: latent weights that are bounded, so that those in the tails can flip, too.

Source: Xu et al., "ReCU: Reviving the Dead Weights in Binary Neural Networks" (ICCV 2021, arXiv 2103.12369) and its
code (github.com/z-hXu/ReCU). Deviation: each filter has a bound of its own, where in the code a layer has one. Filters
have one standard deviation when they are bounded, so that only their mean sizes make the bounds differ.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

FIRST, LAST = 0.85, 0.99


class ReCU(nn.Module):
    """Centred weights of a filter in units of std / (2 sqrt(2)), clamped to +-Q with Q = -mean|w| ln(2 - 2 tau).

    Q is the quantile tau of a Laplace distribution; tau goes from 0.85 to 0.99 as exp(progress) does, which the
    callback `EstimatorSchedule` drives. What lies beyond gets no gradient.

    Shape: (O, I, kH, kW) to the same; `estimator_progress`, a buffer () that no state dict holds.
    """

    estimator_progress: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("estimator_progress", torch.zeros(()), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """The bounded weight of a latent one."""
        dims = (1, 2, 3)
        centred = weight - weight.mean(dims, keepdim=True)
        std = (weight.var(dims, correction=0, keepdim=True) + 1e-12).sqrt()
        scaled = centred / (std / (2 * math.sqrt(2)))
        bound = -scaled.abs().mean(dims, keepdim=True) * torch.log(2 - 2 * quantile(self.estimator_progress))
        bound = bound.detach()
        return scaled.clamp(-bound, bound)


def quantile(progress: Any) -> Tensor:
    """The share tau of weights that are not clamped from above."""
    factor = (LAST - FIRST) / (math.e - 1)
    return FIRST + factor * (torch.exp(torch.as_tensor(progress)) - 1)
