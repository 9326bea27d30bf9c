"""Instance normalisation (Ulyanov et al., arXiv 1607.08022)."""

from __future__ import annotations

from torch import Tensor, nn

from bnfree.normalizers import refuse_single_values


class InstanceNorm(nn.InstanceNorm2d):
    """Statistics of each channel of each image over its positions, the same in training; scale and shift per channel.

    Args:
        channels: number of channels.

    Raises:
        InputError: in a forward, a feature map of one position.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised `x` (N, C, H, W)."""
        refuse_single_values(x, "instance_norm", per_image=True)
        return super().forward(x)
