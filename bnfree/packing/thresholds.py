"""RSign as one comparison a channel: sign(beta * x + shift) is +1 exactly from one float32 number on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Rank of a float32 among the finite ones: 0 for 0, 1 for the smallest positive number, up to the largest.
LARGEST = int(torch.tensor(torch.finfo(torch.float32).max).view(torch.int32))


def find_thresholds(sign: Callable[[Tensor], Tensor], channels: int) -> Tensor:
    """The smallest x of every channel whose sign is +1, found by bisection over all finite float32 numbers.

    The formula -shift / beta would be rounded, and so are the product and the sum in the network: asked at their own
    arithmetic, thresholds agree with it for every x, 0 included.

    Args:
        sign: from x (channels,), float32, to -1 and +1; does not decrease with x.
        channels: number of channels C.

    Returns:
        float32 (C,), finite: the lowest number where the sign is always +1, the highest where it is never.
    """
    low = torch.full((channels,), -LARGEST)
    high = torch.full((channels,), LARGEST)
    while bool((low < high).any()):
        middle = (low + high).div(2, rounding_mode="floor")
        positive = sign(_of_rank(middle)) > 0
        high = torch.where(positive, middle, high)
        low = torch.where(positive | (low == high), low, middle + 1)
    return _of_rank(high)


def _of_rank(rank: Tensor) -> Tensor:
    return rank.abs().to(torch.int32).view(torch.float32).copysign(rank.float())
