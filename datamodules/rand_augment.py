"""RandAugment (Cubuk et al., NeurIPS 2020, arXiv 1909.13719) with draws from a source that is given."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import torch
from torch import Tensor

LEVELS = 31
"""Magnitudes are 0 to 30, as in torchvision."""


def rand_augment(image: Tensor, random: Random, number: int = 2, magnitude: int = 9) -> Tensor:
    """The image after so many operations drawn with replacement from the fourteen of the paper.

    Operations and their strengths are those of `torchvision.transforms.RandAugment`, which draws from the global random
    state; what a turned or moved image leaves empty is black.

    Args:
        image: uint8 (C, H, W) of 1 or 3 channels.
        random: source of the draws.
        number: of operations.
        magnitude: 0 to 30.

    Returns:
        Same shape and dtype.
    """
    for _ in range(number):
        name = random.choice(list(OPERATIONS))
        image = apply_operation(image, name, magnitude, negative=random.random() < 0.5)
    return image


def apply_operation(image: Tensor, name: str, magnitude: int, negative: bool = False) -> Tensor:
    """One operation.

    Args:
        image: uint8 (C, H, W).
        name: of `OPERATIONS`.
        magnitude: 0 to 30.
        negative: the other way round, for operations that have one.
    """
    share = magnitude / (LEVELS - 1)
    return OPERATIONS[name](image, -share if negative else share)


def _moved(image: Tensor, x: int = 0, y: int = 0, shear: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    from torchvision.transforms import functional as vision  # type: ignore[import-untyped]

    centre = [0, 0] if any(shear) else None
    moved: Tensor = vision.affine(image, 0.0, [x, y], 1.0, list(shear), center=centre)
    return moved


def _degrees(slope: float) -> float:
    return float(torch.rad2deg(torch.atan(torch.tensor(slope, dtype=torch.float64))))


def _vision(name: str, *arguments: float) -> Callable[[Tensor], Tensor]:
    from torchvision.transforms import functional as vision

    return lambda image: getattr(vision, name)(image, *arguments)


OPERATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "Identity": lambda image, s: image,
    "ShearX": lambda image, s: _moved(image, shear=(_degrees(0.3 * s), 0.0)),
    "ShearY": lambda image, s: _moved(image, shear=(0.0, _degrees(0.3 * s))),
    "TranslateX": lambda image, s: _moved(image, x=int(150 / 331 * image.shape[2] * s)),
    "TranslateY": lambda image, s: _moved(image, y=int(150 / 331 * image.shape[1] * s)),
    "Rotate": lambda image, s: _vision("rotate", 30 * s)(image),
    "Brightness": lambda image, s: _vision("adjust_brightness", 1 + 0.9 * s)(image),
    "Color": lambda image, s: _vision("adjust_saturation", 1 + 0.9 * s)(image),
    "Contrast": lambda image, s: _vision("adjust_contrast", 1 + 0.9 * s)(image),
    "Sharpness": lambda image, s: _vision("adjust_sharpness", 1 + 0.9 * s)(image),
    "Posterize": lambda image, s: _vision("posterize", 8 - round(4 * abs(s)))(image),
    "Solarize": lambda image, s: _vision("solarize", 255 * (1 - abs(s)))(image),
    "AutoContrast": lambda image, s: _vision("autocontrast")(image),
    "Equalize": lambda image, s: _vision("equalize")(image),
}
"""What an image becomes for a share of the greatest strength, -1 to 1."""
