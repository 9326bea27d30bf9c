"""What arrives in front of every sign: mean, variance, balance of signs, share inside the gradient window.

A sign passes on nothing of a channel whose values all have one sign, and learns nothing from values outside the window
|beta * x + shift| < 1. In a network with batch norm both take care of themselves; here they are watched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bnfree.autocast import without_autocast
from bnfree.backbones.residual import ResidualUnit
from bnfree.errors import InputError
from bnfree.state_dicts import uncompiled


@dataclass(frozen=True)
class UnitSignal:
    """The input of one residual unit; channel statistics are taken over images, rows and columns."""

    name: str
    """Name of the unit in the network."""
    mean: float
    """Mean over channels of |channel mean|."""
    drift: float
    """Mean over channels of |channel mean| / channel standard deviation."""
    variance: float
    """Mean over channels of the channel variance."""
    expected_variance: float | None
    """1 / beta^2, the variance for which beta is right; None in units without beta."""
    imbalance: float
    """Mean over channels of |E sign(beta * x + shift)|: 0 balanced, 1 all of one sign."""
    worst_imbalance: float
    """The same of the worst channel."""
    window: float
    """Share of values with |beta * x + shift| < 1, the only ones with a gradient."""


@torch.no_grad()
def measure_signals(network: nn.Module, images: Tensor) -> list[UnitSignal]:
    """Measures the input of every residual unit in one forward pass in eval mode, without autocast.

    The network keeps its weights, statistics and modes. A compiled network is run in its plain form.

    Args:
        network: a network with `ResidualUnit`s, such as `ReActNet18`.
        images: (N, C, H, W), floating point, normalised as in training.

    Returns:
        One record per residual unit, in the order of the forward pass.

    Raises:
        InputError: a network without residual units, or images of another form.
    """
    network = uncompiled(network)
    units = {name: module for name, module in network.named_modules() if isinstance(module, ResidualUnit)}
    if not units:
        raise InputError(f"network={type(network).__name__} has no ResidualUnit, so there is no signal to measure.")
    if images.dim() != 4 or images.shape[0] == 0:
        raise InputError(f"images has shape {tuple(images.shape)}; signals need (N, C, H, W) with N > 0.")
    measured: list[tuple[str, bool, Tensor]] = []

    def measure(name: str, unit: ResidualUnit, inputs: tuple[Any, ...]) -> None:
        measured.append((name, unit.beta is not None, _statistics(unit, inputs[0])))

    hooks = [
        unit.register_forward_pre_hook(lambda unit, inputs, name=name: measure(name, unit, inputs))
        for name, unit in units.items()
    ]
    modes = {module: module.training for module in network.modules()}
    weight = next(network.parameters())
    try:
        network.eval()
        with without_autocast(weight.device):
            # Not called as a module: that would start the compiler for a batch of another size.
            network.forward(images.to(weight.device, weight.dtype))
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    signals = []
    for name, has_beta, numbers in measured:
        mean, drift, variance, expected, *rest = numbers.tolist()
        signals.append(UnitSignal(name, mean, drift, variance, expected if has_beta else None, *rest))
    return signals


def _statistics(unit: ResidualUnit, x: Tensor) -> Tensor:
    # Squares of signals from 1e19 on overflow in float32, and those of 1e-23 vanish.
    wide = torch.float64 if x.device.type in ("cpu", "cuda") else torch.float32
    x = x.to(wide)
    smallest = torch.finfo(wide).tiny
    variance, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
    beta = x.new_ones(()) if unit.beta is None else unit.beta.to(wide)
    presign = beta * x + unit.rsign.shift.to(wide).view(1, -1, 1, 1)
    imbalance = torch.where(presign >= 0, 1.0, -1.0).to(wide).mean((0, 2, 3)).abs()
    return torch.stack(
        [
            mean.abs().mean(),
            # A constant channel has a drift of 1e12, one of zeros has none.
            (mean.abs() / variance.sqrt().maximum(1e-12 * mean.abs()).clamp(min=smallest)).mean(),
            variance.mean(),
            beta**-2,
            imbalance.mean(),
            imbalance.max(),
            (presign.abs() < 1).to(wide).mean(),
        ]
    )
