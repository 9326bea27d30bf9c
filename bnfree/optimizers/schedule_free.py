"""Schedule-free AdamW of the package `schedulefree`, as a class that says what to install."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from bnfree.errors import InputError


class AdamWScheduleFree(Optimizer):
    """Makes a `schedulefree.AdamWScheduleFree`, which is AdamW with averaged weights in place of a schedule.

    It holds two sets of weights, and wants to be told which: the callback `ScheduleFree` does. Train it with
    `lr_scheduler: null`.

    Source: Defazio et al., "The Road Less Scheduled" (NeurIPS 2024, arXiv 2405.15682).

    Args:
        params: parameters or groups.
        lr: learning rate, constant after the warm-up.
        betas: momentum of the average, and moving average of the square.
        eps: added to the root of the square.
        weight_decay: of the weights at which gradients are taken.
        warmup_steps: steps over which the learning rate rises.

    Raises:
        InputError: the package is missing.
    """

    def __new__(
        cls,
        params: Any,
        lr: float = 2.5e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
    ) -> Any:
        """The optimizer of the package."""
        try:
            from schedulefree import AdamWScheduleFree as Found
        except ImportError:
            raise InputError(
                "AdamWScheduleFree needs schedulefree, which is missing: pip install schedulefree."
            ) from None
        return Found(params, lr, betas, eps=eps, weight_decay=weight_decay, warmup_steps=warmup_steps)
