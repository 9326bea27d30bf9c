"""RPReLU: PReLU with learnable shifts before and after (ReActNet, Liu et al., ECCV 2020)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnfree.errors import InputError
from bnfree.lean.activations import LeanRPReLU
from bnfree.lean.function import as_output

Slopes = Literal["learned", "power_of_two"]


class RPReLU(nn.Module):
    """PReLU(x + shift_in) + shift_out with one slope and two shifts per channel.

    Source: ReActNet, eq. 5, written as in the public code (shift, PReLU, shift).

    Args:
        channels: number of channels C.

    Shape: input and output (N, C, H, W), same dtype; `shift_in`, `slope`, `shift_out` (C,), initially 0, 0.25, 0.
    With `lean` (an attribute, True) the backward pass needs the input alone.
    """

    lean: bool
    slope: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.lean = True
        self.shift_in = nn.Parameter(torch.zeros(channels))
        self._add_slope(channels)
        self.shift_out = nn.Parameter(torch.zeros(channels))

    def _add_slope(self, channels: int) -> None:
        self.slope = nn.Parameter(torch.full((channels,), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        """RPReLU of `x` (N, C, H, W), in its dtype."""
        if self.lean and x.dim() == 4:
            return LeanRPReLU.apply(x, self.shift_in, self.slope, self.shift_out)
        shift_in, shift_out = (s.to(x.dtype).view(1, -1, 1, 1) for s in (self.shift_in, self.shift_out))
        return F.prelu(x + shift_in, self.slope.to(x.dtype)) + shift_out

    def extra_repr(self) -> str:
        """What `print` shows of the layer."""
        return f"{self.shift_in.numel()}"


class PowerOfTwoRPReLU(RPReLU):
    """RPReLU whose slopes are powers of two: a multiplication by one is a shift, or a step of a number's exponent.

    slope = 2^round(exponent), halves to even; in the backward pass the rounding is left out, so that the gradient of an
    exponent is that of the slope times ln(2) * slope.

    Source: A&B BNN (CVPR 2024, arXiv 2403.03739), with its first exponent, -3.

    Args:
        channels: number of channels C.

    Shape: as `RPReLU`; `exponent` (C,), initially -3, in place of the parameter `slope`, which is computed.
    """

    def _add_slope(self, channels: int) -> None:
        self.exponent = nn.Parameter(torch.full((channels,), -3.0))

    @property
    def slope(self) -> Tensor:  # type: ignore[override]
        """The slopes (C,), powers of two."""
        return torch.exp2(_Rounded.apply(self.exponent))


def build_rprelu(channels: int, slopes: Slopes) -> RPReLU:
    """The activation of a unit.

    Args:
        channels: number of channels.
        slopes: `learned`: a real number each; `power_of_two`.

    Raises:
        InputError: others.
    """
    if slopes not in ("learned", "power_of_two"):
        raise InputError(f"slopes={slopes!r} is not known; choose 'learned' or 'power_of_two'.")
    return PowerOfTwoRPReLU(channels) if slopes == "power_of_two" else RPReLU(channels)


class _Rounded(torch.autograd.Function):
    """Whole numbers, with the gradient of the identity."""

    # For gradients of single images by `torch.func.vmap`.
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return as_output(x.round())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient
