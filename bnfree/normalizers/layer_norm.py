"""Layer normalisation of feature maps (Ba et al., arXiv 1607.06450; over channels as in ConvNeXt, arXiv 2201.03545)."""

from __future__ import annotations

from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """Statistics of each position over its channels; scale and shift per channel.

    Over channels alone, as ConvNeXt has it, and not over channels and positions, which would be a group norm of one
    group.

    Args:
        channels: number of channels.

    Shape: (N, C, H, W) to the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised `x` (N, C, H, W), in the memory format of `x`."""
        normalized = super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return normalized.contiguous() if x.is_contiguous() else normalized
