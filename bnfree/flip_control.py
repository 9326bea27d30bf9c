"""A controller that makes steps of latent weights longer or shorter until as many signs flip as are wanted.

Source: "transition rate" scheduling (ICCV 2025, arXiv 2404.19248): U <- max(0, U + eta (R - K)) in place of the
learning rate, R falling from 5e-3 to 0 as a cosine does, K the moving average of the share of flips with momentum 0.99.
Deviation: the controller here multiplies the optimizer's own step and knows no unit: U <- U exp(eta e), with e = (R -
K) / R held within +-1. Where flips are in proportion to the step, log U and K obey x' = -eta y, y' = (1 - momentum) (x
- y), which neither overshoots nor creeps at eta = (1 - momentum) / 4; the published momentum and a gain of 0.1 swing
with a period of 200 steps. The moving average begins with what is wanted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bnfree.errors import InputError

LIMIT = 100.0
"""A step is made at most this many times longer, or shorter."""

SCHEDULES = ("cosine", "linear", "constant")


def wanted_share(start: float, progress: float, schedule: str = "cosine") -> float:
    """The share of signs that should flip in a step.

    Args:
        start: at the start of a training.
        progress: share of the training that is over, 0 to 1.
        schedule: `cosine` or `linear`, both to 0, or `constant`.

    Raises:
        InputError: an unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise InputError(f"schedule={schedule!r} is not known; choose 'cosine', 'linear' or 'constant'.")
    progress = min(max(progress, 0.0), 1.0)
    shapes = {"cosine": (1 + math.cos(math.pi * progress)) / 2, "linear": 1 - progress, "constant": 1.0}
    return start * shapes[schedule]


@dataclass
class FlipControl:
    """The controller's state, on the device of the weights: nothing waits for it.

    Attributes:
        factor: (), what the optimizer's step is multiplied with.
        mean: (), moving average of the share of flips.
    """

    factor: Tensor
    mean: Tensor

    @classmethod
    def starting(cls, wanted: float, device: torch.device) -> FlipControl:
        """Before the first step: factor 1, and the average is what is wanted."""
        return cls(torch.ones((), device=device), torch.tensor(wanted, device=device))

    def to(self, device: torch.device) -> FlipControl:
        """The same on another device."""
        return FlipControl(self.factor.to(device), self.mean.to(device))

    @torch.no_grad()
    def update(self, share: Tensor, wanted: float, momentum: float) -> None:
        """Takes the share (0 to 1) of signs that flipped in a step, and changes the factor of the next one."""
        self.mean = self.mean.lerp(share.to(self.mean), 1 - momentum)
        error = (1 - self.mean / wanted).clamp(-1, 1) if wanted > 0 else -torch.ones_like(self.mean)
        self.factor = (self.factor * torch.exp((1 - momentum) / 4 * error)).clamp(1 / LIMIT, LIMIT)
