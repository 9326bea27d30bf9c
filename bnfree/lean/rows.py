"""Channels of an output of which a convolution computes only some, because it has lost the other filters."""

from __future__ import annotations

import torch
from torch import Tensor


def spread_rows(y: Tensor, kept_rows: Tensor, channels: int) -> Tensor:
    """The whole output: channels that are there in their places, 0 in the others.

    Args:
        y: (N, K, H, W) or (K, H, W).
        kept_rows: int64 (K,), the place of each channel.
        channels: of the whole output, O.

    Returns:
        (N, O, H, W) or (O, H, W), in the memory format of `y`.
    """
    *batch, _, height, width = y.shape
    zeros = y.new_zeros((*batch, channels, height, width))
    if y.dim() == 4 and not y.is_contiguous() and y.is_contiguous(memory_format=torch.channels_last):
        zeros = zeros.contiguous(memory_format=torch.channels_last)
    return zeros.index_copy(-3, kept_rows, y)
