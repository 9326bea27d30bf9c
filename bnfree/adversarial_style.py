"""A layer that changes the style of feature maps against the training: AdvStyle."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from bnfree.errors import InputError

EPS = 1e-6
Kind = Literal["adversarial", "spread", "none"]


class AdversarialStyle(nn.Module):
    """Shifts mean and deviation of each image's channels by learned amounts that increase the loss.

    mean' = mean + e * s_mean and std' = std + e' * s_std, with e and e' drawn from a normal law for each image and
    channel. The strengths s are learned by the optimizer of the training with their gradient reversed and multiplied.
    They start as the spread of mean and deviation among the images of the first batch. Of three kinds of steps one uses
    them (`adversarial`), one that spread of the batch itself (`spread`), and one changes nothing (`none`).

    Source: Zhang et al., "Adversarial style augmentation for domain generalization" (arXiv 2301.12643), with the
    reversal weight 10 of their scripts. Deviation: drawn from generators that are given, so that a resumed run and all
    processes agree.

    Args:
        channels: number of channels C.
        reversal: by what the strengths' gradients are multiplied, beside -1.

    Shape: (N, C, H, W) to the same; `mean_strength`, `std_strength` (C,), and `started` (), bool. In evaluation, and
    without `draw`, the identity.

    Raises:
        InputError: `reversal` not above 0.
    """

    started: Tensor

    def __init__(self, channels: int, reversal: float = 10.0) -> None:
        super().__init__()
        if not 0 < reversal < float("inf"):
            raise InputError(f"reversal={reversal} must be a finite number greater than 0.")
        self.reversal = reversal
        self.mean_strength, self.std_strength = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("started", torch.tensor(False))
        # What `started` holds, once it has been asked for: a GPU would be waited for in every step.
        self._has_started = False
        self._kind: Kind = "none"
        self._generator: torch.Generator | None = None

    def draw(self, kind: Kind, generator: torch.Generator) -> None:
        """Says what the next forward pass in training does, and where its draws are from."""
        self._kind, self._generator = kind, generator

    @torch.no_grad()
    def _start(self, mean_strength: Tensor, std_strength: Tensor) -> None:
        for strength, found in ((self.mean_strength, mean_strength), (self.std_strength, std_strength)):
            strength.copy_(torch.where(self.started, strength, found))
        self.started.fill_(True)
        self._has_started = True

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        super()._load_from_state_dict(*arguments, **options)
        self._has_started = False

    def forward(self, x: Tensor) -> Tensor:
        """Restyled `x` (N, C, H, W)."""
        if not self.training:
            return x
        mean, std = x.detach().mean((2, 3)), x.detach().std((2, 3), correction=0)
        spreads = mean.std(0, correction=0), std.std(0, correction=0)
        if not self._has_started:
            self._start(*spreads)
        if self._kind == "none":
            # The strengths take part, with a gradient of 0, so that processes wait for none.
            return x + 0 * (self.mean_strength.sum() + self.std_strength.sum())
        drawn = torch.randn(2, *mean.shape, generator=self._generator).to(x.device, x.dtype, non_blocking=True)
        strengths = (self.mean_strength, self.std_strength)
        if self._kind == "adversarial":
            spreads = _Against.apply(strengths[0], self.reversal), _Against.apply(strengths[1], self.reversal)
        moved = restyle(x, drawn[0] * spreads[0], drawn[1] * spreads[1])
        return moved if self._kind == "adversarial" else moved + 0 * (strengths[0].sum() + strengths[1].sum())


def restyle(x: Tensor, mean_shift: Tensor, std_shift: Tensor) -> Tensor:
    """Feature maps whose mean and deviation of each channel of each image are moved by amounts.

    Args:
        x: (N, C, H, W).
        mean_shift: (N, C).
        std_shift: (N, C).

    Returns:
        (x - mean) * (std + std_shift) / std + mean + mean_shift; statistics are constants for the gradient.
    """
    mean, std = x.detach().mean((2, 3), keepdim=True), x.detach().std((2, 3), correction=0, keepdim=True)
    factor = 1 + std_shift[:, :, None, None] / (std + EPS)
    return (x - mean) * factor + mean + mean_shift[:, :, None, None]


def with_statistics_of(x: Tensor, other: Tensor) -> Tensor:
    """Feature maps with the mean and deviation that another one has in each channel of each image.

    The normalisation of A-FAN (Chen et al., TMLR 2022, arXiv 2103.12171), where `other` is the changed `x`. Statistics
    are constants for the gradient, as in `restyle`, and those of one image: no image sees another.

    Args:
        x: (N, C, H, W).
        other: of the same N and C.
    """
    found = [(f.detach().mean((2, 3)), f.detach().std((2, 3), correction=0)) for f in (x, other)]
    return restyle(x, found[1][0] - found[0][0], found[1][1] - found[0][1])


class _Against(torch.autograd.Function):
    """The identity, whose gradient is multiplied by -weight."""

    @staticmethod
    def forward(x: Tensor, weight: float) -> Tensor:
        """`x`."""
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        """Keeps the weight."""
        ctx.weight = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """-weight * gradient."""
        return -ctx.weight * gradient, None
