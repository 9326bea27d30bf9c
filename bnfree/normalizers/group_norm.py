"""Group normalisation (Wu and He, ECCV 2018, arXiv 1803.08494)."""

from __future__ import annotations

import math

from torch import nn

CHANNELS_OF_A_GROUP = 16


class GroupNorm(nn.GroupNorm):
    """Statistics of each image over groups of 16 channels and all positions; scale and shift per channel.

    Sixteen channels a group is the second setting of the paper's table 3, which goes with any width (its other one, 32
    groups, leaves two channels in a group of the narrow stages). Where 16 does not divide the channels, the largest
    power of two that does.

    Args:
        channels: number of channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels // math.gcd(channels, CHANNELS_OF_A_GROUP), channels)
