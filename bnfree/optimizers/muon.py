"""Muon for convolutions: steps whose directions in the space of filters are equally large."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from bnfree.errors import InputError

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(Optimizer):
    """Orthogonalised momentum for the weights of convolutions, as matrices (filters, fan-in); Adam for all else.

    `torch.optim.Muon` takes matrices only, and does to them what this one does to flattened convolutions. Gains,
    shifts, slopes and classifiers are Adam's, with a learning rate of their own, which the schedule moves in the same
    proportion.

    Source: Jordan et al., github.com/KellerJordan/Muon; three Newton-Schulz steps and momentum 0.6 are those of its use
    for CIFAR-10 (airbench).

    Args:
        params: parameters or groups; those of a group are divided into two.
        lr: learning rate of the convolutions; a step changes a matrix by about lr * sqrt(max(1, filters / fan-in)) in
            each direction.
        momentum: of the convolutions' gradients, Nesterov's.
        steps: Newton-Schulz iterations, in bfloat16.
        weight_decay: decoupled, of all.
        adam_lr: learning rate of all else.
        betas: of Adam.
        eps: of Adam.

    Raises:
        InputError: a value out of range.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.02,
        momentum: float = 0.6,
        steps: int = 3,
        weight_decay: float = 0.0,
        adam_lr: float = 5e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if not lr >= 0 or not adam_lr >= 0 or not 0 <= momentum < 1 or not 1 <= steps < 100:
            raise InputError(
                f"Muon(lr={lr}, momentum={momentum}, steps={steps}, adam_lr={adam_lr}) must have rates of at least 0, "
                "a momentum from 0 to below 1 and 1 to 99 steps."
            )
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "steps": steps}
        super().__init__(_split(params, lr, adam_lr), {**defaults, "betas": tuple(betas), "eps": eps, "muon": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; `closure` computes loss and gradients, and what it returns is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            update = self._muon if group["muon"] else self._adam
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    update(weight, weight.grad, group)
        return loss

    def _muon(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        velocity = state["momentum"].lerp_(gradient, 1 - group["momentum"])
        matrix = gradient.lerp(velocity, group["momentum"]).flatten(1)
        strength = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
        step = orthogonalized(matrix, group["steps"]).view_as(weight).to(weight.dtype)
        weight.add_(step, alpha=-group["lr"] * strength)

    def _adam(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[weight], group["betas"]
        if not state:
            state["step"] = 0
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        state["step"] += 1
        mean = state["exp_avg"].lerp_(gradient, 1 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = (square.sqrt() / (1 - beta2 ** state["step"]) ** 0.5).add_(group["eps"])
        weight.addcdiv_(mean, root, value=-group["lr"] / (1 - beta1 ** state["step"]))


def orthogonalized(matrix: Tensor, steps: int) -> Tensor:
    """A matrix (O, I) with the singular vectors of another, and singular values near 1; bfloat16.

    A quintic Newton-Schulz iteration, which leaves them between about 0.7 and 1.2 after five steps.
    """
    a, b, c = COEFFICIENTS
    wide = matrix.shape[0] <= matrix.shape[1]
    x = (matrix if wide else matrix.T).bfloat16()
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.T


def _split(params: Any, lr: float, adam_lr: float) -> list[dict[str, Any]]:
    """Groups of convolutions and of all else."""
    params = list(params)
    groups = params if params and isinstance(params[0], dict) else [{"params": params}]
    found: list[dict[str, Any]] = []
    for group in groups:
        members = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        for muon in (True, False):
            chosen = [p for p in members if (p.dim() == 4 and p.shape[1:].numel() > 1) is muon]
            if chosen:
                rate = {"lr": group.get("lr", lr) if muon else adam_lr, "muon": muon}
                name = {"name": f"{group['name']}_{'muon' if muon else 'adam'}"} if "name" in group else {}
                found.append({**group, "params": chosen, **rate, **name})
    return found
