"""Adversarial images by projected gradient ascent on the loss.

Source: Madry et al., "Towards deep learning models resistant to adversarial attacks" (ICLR 2018, arXiv 1706.06083). Of
our own, since the libraries of attacks have had no release for years.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bnfree.errors import InputError


@dataclass(frozen=True)
class Attack:
    """How far and how fast images are moved, in units of images scaled to [0, 1].

    Raises:
        InputError: a value out of range.
    """

    epsilon: float = 8 / 255
    """Greatest change of a pixel."""
    step_size: float = 2 / 255
    """Change in one step."""
    steps: int = 7
    random_start: bool = True
    """Start from a uniformly drawn change."""

    def __post_init__(self) -> None:
        for name in ("epsilon", "step_size"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 0 and at most 1, as 8 / 255 is.")
        if self.steps < 0:
            raise InputError(f"steps={self.steps} must be at least 0.")


def pgd(
    network: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    attack: Attack,
    mean: Sequence[float],
    std: Sequence[float],
    generator: torch.Generator | None = None,
) -> Tensor:
    """Images within `epsilon` of the given ones for which the cross-entropy is large.

    Gradients of the network's parameters are left alone.

    Args:
        network: from images to logits, in whatever mode it is.
        images: (N, C, H, W), normalised.
        labels: int64 (N,), or the shares of the classes (N, K).
        attack: how.
        mean: of normalisation, one for each channel.
        std: likewise.
        generator: of the random start, on the CPU; None: the global one.

    Returns:
        Shape and dtype of `images`; every pixel within the range of pixels.
    """
    centre, scale = (
        torch.tensor(list(v), dtype=images.dtype).view(-1, 1, 1).to(images.device, non_blocking=True)
        for v in (mean, std)
    )
    low, high = (0 - centre) / scale, (1 - centre) / scale
    reach, step = attack.epsilon / scale, attack.step_size / scale
    low, high = torch.maximum(images - reach, low), torch.minimum(images + reach, high)
    found = images.detach().clone()
    if attack.random_start:
        drawn = torch.rand(images.shape, generator=generator).to(images.device, images.dtype, non_blocking=True)
        found = found + (2 * drawn - 1) * reach
    found = found.clamp(low, high)
    for _ in range(attack.steps):
        found.requires_grad_()
        with torch.enable_grad():
            loss = F.cross_entropy(network(found), labels)
            (gradient,) = torch.autograd.grad(loss, found)
        found = (found.detach() + step * gradient.sign()).clamp(low, high)
    return found.detach()


def adversarial_features(
    tail: Callable[[Tensor], Tensor],
    features: Tensor,
    labels: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    steps: int,
    step_size: float,
) -> Tensor:
    """What to add to features so that the loss of the layers behind them is large: the attack of A-FAN.

    Source: Chen et al., "Adversarial feature augmentation and normalization for visual recognition" (TMLR 2022, arXiv
    2103.12171). Neither clipped nor started at random; gradients of parameters are left alone.

    Args:
        tail: from features to logits.
        features: of any shape.
        labels: as `loss` takes them.
        loss: from logits and labels to a number.
        steps: K.
        step_size: of a step, along the sign of the gradient.

    Returns:
        Shape of `features`, without a gradient; 0 for no steps.
    """
    features = features.detach()
    change = torch.zeros_like(features)
    for _ in range(steps):
        moved = (features + change).requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(loss(tail(moved), labels), moved)
        change = change + step_size * gradient.sign()
    return change
