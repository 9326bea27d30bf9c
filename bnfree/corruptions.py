"""Seven of the corruptions by which robustness is measured, in five severities.

Source: Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations" (ICLR
2019, arXiv 1903.12261), with the severities of their CIFAR-10-C. Deviations: brightness adds to all channels in place
of the value of HSV, blur pads by reflection, and pixelate reduces by averaging areas; figures are not those of the
published files.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from bnfree.errors import InputError

SEVERITIES = 5


def corrupt(images: Tensor, kind: str, severity: int, generator: torch.Generator | None = None) -> Tensor:
    """Corrupted images.

    Args:
        images: (N, C, H, W), scaled to [0, 1].
        kind: of `CORRUPTIONS`.
        severity: 1 to 5.
        generator: of what is drawn, on the CPU; None: the global one.

    Returns:
        Same shape and dtype, within [0, 1].

    Raises:
        InputError: a kind or severity that there is not.
    """
    if kind not in CORRUPTIONS:
        raise InputError(f"corruption={kind!r} is not known; choose from {', '.join(CORRUPTIONS)}.")
    if severity not in range(1, SEVERITIES + 1):
        raise InputError(f"severity={severity} must be 1 to {SEVERITIES}.")
    apply, strengths = CORRUPTIONS[kind]
    return apply(images, strengths[severity - 1], generator).clamp(0, 1)


def _drawn(draw: Callable[..., Tensor], images: Tensor, generator: torch.Generator | None) -> Tensor:
    return draw(images.shape, generator=generator).to(images.device, images.dtype)


def _gaussian_noise(images: Tensor, strength: float, generator: torch.Generator | None) -> Tensor:
    return images + strength * _drawn(torch.randn, images, generator)


def _shot_noise(images: Tensor, strength: float, generator: torch.Generator | None) -> Tensor:
    counts = torch.poisson(images.cpu().float().clamp(min=0) * strength, generator=generator)
    return (counts / strength).to(images.device, images.dtype)


def _impulse_noise(images: Tensor, strength: float, generator: torch.Generator | None) -> Tensor:
    drawn = _drawn(torch.rand, images, generator)
    images = torch.where(drawn < strength / 2, 0.0, images)
    return torch.where(drawn > 1 - strength / 2, 1.0, images)


def _brightness(images: Tensor, strength: float, generator: torch.Generator | None) -> Tensor:
    return images + strength


def _contrast(images: Tensor, strength: float, generator: torch.Generator | None) -> Tensor:
    mean = images.mean((2, 3), keepdim=True)
    return mean + (images - mean) * strength


def _blur(images: Tensor, strength: float, generator: torch.Generator | None) -> Tensor:
    radius = max(1, int(4 * strength + 0.5))
    places = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    line = torch.softmax(-0.5 * (places / strength).square(), 0)
    channels = images.shape[1]
    radius_h, radius_w = (min(radius, side - 1) for side in images.shape[2:])
    for shape, pad in (((-1, 1), (0, 0, radius_h, radius_h)), ((1, -1), (radius_w, radius_w, 0, 0))):
        reach = max(pad)
        kernel = line[radius - reach : radius + reach + 1]
        kernel = (kernel / kernel.sum()).view(1, 1, *shape).expand(channels, 1, -1, -1)
        images = F.conv2d(F.pad(images, pad, mode="reflect"), kernel, groups=channels)
    return images


def _pixelate(images: Tensor, strength: float, generator: torch.Generator | None) -> Tensor:
    size = [max(1, int(side * strength)) for side in images.shape[2:]]
    return F.interpolate(F.interpolate(images, size, mode="area"), images.shape[2:], mode="nearest")


CORRUPTIONS: dict[str, tuple[Callable[[Tensor, float, torch.Generator | None], Tensor], tuple[float, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (_shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": (_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "brightness": (_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "gaussian_blur": (_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "pixelate": (_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
}
"""What a kind does with a strength, and its strengths by severity."""
