"""8-bit images as a network's first layer has them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Normalization:
    """What normalised images are made by: (pixel / 255 - mean) / std, per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def zero(self) -> Tensor:
        """The pixel that becomes 0, float64 (C,); in general none that an image can have."""
        return 255 * torch.tensor(self.mean, dtype=torch.float64)

    def factor(self) -> Tensor:
        """What a step between pixels becomes, float64 (C,)."""
        return 1 / (255 * torch.tensor(self.std, dtype=torch.float64))

    def pixels(self, images: Tensor) -> Tensor | None:
        """The 8-bit images that normalised ones, (N, C, H, W), are made of; None if they are made of no such."""
        zero, factor = (values.view(-1, 1, 1) for values in (self.zero(), self.factor()))
        numbers = images.double() / factor + zero
        whole = numbers.round()
        of_pixels = ((numbers - whole).abs() <= 1e-3) & (whole >= 0) & (whole <= 255)
        return whole.to(torch.uint8) if bool(of_pixels.all()) else None

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalised images, float32 (N, C, H, W), of 8-bit ones, uint8 (N, C, H, W)."""
        zero, factor = (values.float().view(-1, 1, 1) for values in (self.zero(), self.factor()))
        return pixels.float().sub_(zero).mul_(factor)
