"""SGDP: stochastic gradient descent whose steps do not let the norm of scale-invariant weights grow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from bnfree.errors import InputError
from bnfree.optimizers.adamp import decay
from bnfree.optimizers.projection import project


class SGDP(Optimizer):
    """SGD with momentum and decoupled weight decay, its steps projected as those of `AdamP`.

    Source: Heo et al., ICLR 2021 (arXiv 2006.08217) and their code, which divides the weight decay by 1 - momentum.

    Args:
        params: parameters or groups.
        lr: learning rate.
        momentum: of the gradient.
        nesterov: Nesterov's momentum.
        weight_decay: weights are multiplied by 1 - lr * weight_decay / (1 - momentum).
        delta: of the test for scale-invariance.
        wd_ratio: factor of the weight decay of what is projected.

    Raises:
        InputError: a value out of range.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
    ) -> None:
        if not lr >= 0 or not 0 <= momentum < 1 or not delta >= 0 or not weight_decay >= 0:
            raise InputError(
                f"SGDP(lr={lr}, momentum={momentum}, weight_decay={weight_decay}, delta={delta}) must have a momentum "
                "from 0 to below 1 and the others at least 0."
            )
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
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
                if weight.grad is None:
                    continue
                state, momentum = self.state[weight], group["momentum"]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                velocity = state["momentum"].mul_(momentum).add_(weight.grad)
                step = weight.grad + momentum * velocity if group["nesterov"] else velocity
                step, projected = project(weight, weight.grad, step, group["delta"])
                decay(weight, group["lr"] * group["weight_decay"] / (1 - momentum), group["wd_ratio"], projected)
                weight.add_(step, alpha=-group["lr"])
        return loss
