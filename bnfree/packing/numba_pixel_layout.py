"""The first layer on 8-bit images in the layout of the numba engine: normalisation folded in, weights of 24 bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnfree.packing.layers import PackedStem
from bnfree.packing.numba_layout import filled
from bnfree.packing.numba_unit import BLOCK
from bnfree.packing.pixels import Normalization

# The largest that three signed bytes make, when all of them have both signs.
LARGEST = 127 * (1 << 16) + 127 * (1 << 8) + 127


def fits(stem: PackedStem, normalization: Normalization) -> bool:
    """Whether a pixel is one word at most, no sum of the upper two planes can leave 32 bits, and scales are numbers."""
    channels = stem.weight.values.shape[1]
    farthest = max(max(abs(zero), abs(255 - zero), 255) for zero in normalization.zero().tolist())
    within = stem.weight.values[0].numel() * farthest * ((LARGEST >> 8) + 1) < 1 << 31
    largest = _folded(stem, normalization).abs().flatten(1).amax(1)
    return channels <= 4 and within and bool(((largest == 0) | (largest > 1e-25) & (largest < 1e30)).all())


class PixelLayout:
    """Weights and constants, whatever the images' size.

    Pixels are summed as they are, and the pixel that normalisation makes 0, times the weights that meet the image, is
    subtracted: so the sums are those of normalised images, which zeros surround, and only the weights are rounded.

    Args:
        stem: the layer, which `fits`.
        normalization: of the images.
    """

    def __init__(self, stem: PackedStem, normalization: Normalization) -> None:
        self.stem = stem
        out_channels, self.channels, self.kernel_size, _ = stem.weight.values.shape
        self.blocks = -(-out_channels // BLOCK)
        weight = _folded(stem, normalization)
        largest = weight.abs().flatten(1).amax(1)
        # A step is left for what rounding adds to a weight, and a bit for that of the scale.
        scale = torch.where(largest > 0, largest / (LARGEST - 2), 1.0).float()
        # As a strip has them: column by column.
        taps = weight.permute(0, 3, 2, 1).flatten(1) / scale.double().view(-1, 1)
        # What rounding takes from a tap, the next one gets: neighbours in an image are alike.
        taps = taps.cumsum(1).round().diff(dim=1, prepend=torch.zeros(out_channels, 1))
        self.scale, self.bias, self.zeros = (
            scale.double().numpy(),
            stem.bias.double().numpy(),
            normalization.zero().numpy(),
        )
        self.scales = filled(scale.numpy(), 0, self.blocks * BLOCK)
        self.taps: NDArray[np.int64] = taps.long().numpy()
        self.weights = self._planes()
        self.steps = self.weights.shape[2]

    def _planes(self) -> NDArray[np.int8]:
        """(blocks, 3, steps, 32, 4)."""
        missing = self.blocks * BLOCK - len(self.taps), -self.taps.shape[1] % 4
        taps = np.pad(self.taps, [(0, count) for count in missing])
        low = (taps + 128) % 256 - 128
        upper = (taps - low) // 256
        middle = (upper + 128) % 256 - 128
        planes = np.stack([(upper - middle) // 256, middle, low]).astype(np.int8)
        planes = planes.reshape(3, self.blocks, BLOCK, -1, 4)
        return np.ascontiguousarray(planes.transpose(1, 0, 3, 2, 4))

    def base(
        self, rows: Sequence[tuple[int, int]], columns: Sequence[tuple[int, int]]
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """What is subtracted from the upper sums, and added to the scaled ones: (row cases, column cases, channels).

        Args:
            rows: first and last tap, exclusive, of each case.
            columns: likewise.
        """
        shape = len(rows), len(columns), self.blocks * BLOCK
        taps = self.taps.reshape(-1, self.kernel_size, self.kernel_size, self.channels)
        base, rest = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                met = taps[:, slice(*column), slice(*row)].sum((1, 2))
                total = met @ self.zeros
                upper = np.rint(total / 256)
                base[i, j, : len(met)] = upper
                rest[i, j, : len(met)] = self.bias - (total - 256 * upper) * self.scale
        return base, rest


def _folded(stem: PackedStem, normalization: Normalization) -> Tensor:
    """The weight of pixels, float64 (O, I, k, k)."""
    return stem.weight.expand().double() * normalization.factor().view(-1, 1, 1)
