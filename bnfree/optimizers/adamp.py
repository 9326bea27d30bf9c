"""AdamP: Adam whose steps do not let the norm of scale-invariant weights grow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from bnfree.errors import InputError
from bnfree.optimizers.projection import project


class AdamP(Optimizer):
    """AdamW, and where a weight is scale-invariant its step is projected, its weight decay times `wd_ratio`.

    Every standardised latent weight is; which ones are is tested in each step, see `bnfree.optimizers.projection`.

    Source: Heo et al., ICLR 2021 (arXiv 2006.08217) and their code. timm has it, too; this one never waits for an
    accelerator, and leaves gains alone.

    Args:
        params: parameters or groups.
        lr: learning rate.
        betas: of the moving averages of gradient and square.
        eps: added to the root of the square.
        weight_decay: decoupled: weights are multiplied by 1 - lr * weight_decay.
        delta: of the test for scale-invariance.
        wd_ratio: factor of the weight decay of what is projected.

    Raises:
        InputError: a value out of range.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
    ) -> None:
        if not lr >= 0 or not delta >= 0 or not weight_decay >= 0 or not all(0 <= beta < 1 for beta in betas):
            raise InputError(
                f"AdamP(lr={lr}, betas={tuple(betas)}, weight_decay={weight_decay}, delta={delta}) must have betas "
                "from 0 to below 1 and the others at least 0."
            )
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "delta": delta, "wd_ratio": wd_ratio})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; `closure` computes loss and gradients, and what it returns is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)
        return loss

    def _update(self, weight: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[weight], group["betas"]
        if not state:
            state["step"] = 0
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        state["step"] += 1
        gradient = weight.grad
        assert gradient is not None
        mean = state["exp_avg"].lerp_(gradient, 1 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = (square.sqrt() / (1 - beta2 ** state["step"]) ** 0.5).add_(group["eps"])
        step, projected = project(weight, gradient, mean / root, group["delta"], group["eps"])
        decay(weight, group["lr"] * group["weight_decay"], group["wd_ratio"], projected)
        weight.add_(step, alpha=-group["lr"] / (1 - beta1 ** state["step"]))


def decay(weight: Tensor, strength: float, ratio: float, projected: Tensor | None) -> None:
    """Multiplies by 1 - strength, and by 1 - strength * ratio where the step was projected."""
    if strength == 0:
        return
    if projected is None:
        weight.mul_(1 - strength)
    else:
        weight.mul_(1 - strength * (1 - (1 - ratio) * projected.to(weight.dtype)))
