"""RPReLU: PReLU with learnable shifts before and after (ReActNet, Liu et al., ECCV 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnfree.lean.activations import LeanRPReLU


class RPReLU(nn.Module):
    """PReLU(x + shift_in) + shift_out with one slope and two shifts per channel.

    Source: ReActNet, eq. 5, written as in the public code (shift, PReLU, shift).

    Args:
        channels: number of channels C.

    Shape: input and output (N, C, H, W), same dtype; `shift_in`, `slope`, `shift_out` (C,), initially 0, 0.25, 0.
    With `lean` (an attribute, True) the backward pass needs the input alone.
    """

    lean: bool

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.lean = True
        self.shift_in = nn.Parameter(torch.zeros(channels))
        self.slope = nn.Parameter(torch.full((channels,), 0.25))
        self.shift_out = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """RPReLU of `x` (N, C, H, W), in its dtype."""
        if self.lean and x.dim() == 4:
            return LeanRPReLU.apply(x, self.shift_in, self.slope, self.shift_out)
        shift_in, shift_out = (s.to(x.dtype).view(1, -1, 1, 1) for s in (self.shift_in, self.shift_out))
        return F.prelu(x + shift_in, self.slope.to(x.dtype)) + shift_out

    def extra_repr(self) -> str:
        """What `print` shows of the layer."""
        return f"{self.slope.numel()}"
