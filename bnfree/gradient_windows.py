"""The gradient windows of the signs, brought back to the width of the signal without a change of the network.

A sign passes gradients where its input beta * x + shift lies in a window around 0, |x| < 1 for most estimators. Batch
norm keeps the input at one width for all of a training. In a BN-free network beta is a constant, and the trunk grows:
measured on ReActNet18 of width 16 after 14 epochs, the standard deviation in front of the last sign has gone from 1 to
3.8, and 36 % of the values are left in the window (batch norm: 1.35, 61 %). Since sign(c z) = sign(z) for c > 0, beta
and shift can be multiplied by one number in every unit: signs and logits stay the same, up to values within rounding of
a threshold, and the window has its width again.

The shortcut of a transition takes beta * x as well; there the gain of its projection is divided by the same number. A
transition without a projection (ReActNetA) stays as it is.

This is our own; docs/budget.md has what it does to accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from bnfree.backbones.residual import ResidualUnit
from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError


@torch.no_grad()
def measure_signal_widths(network: nn.Module, images: Tensor) -> dict[str, float]:
    """Width of the signal in front of every sign: mean over channels of the standard deviation of beta * x.

    One forward pass in the mode that the network is in.

    Args:
        network: a BN-free network with `ResidualUnit`s, such as `ReActNet18(norm="bn_free")`.
        images: (N, C, H, W), floating point, normalised as in training.

    Returns:
        By the name of the unit, in the order of the forward pass; units whose beta cannot be scaled are left out.

    Raises:
        InputError: no unit with a beta, or no images.
    """
    units = _units(network)
    if images.dim() != 4 or images.shape[0] == 0:
        raise InputError(f"images has shape {tuple(images.shape)}; it must be (N, C, H, W) with N > 0.")
    found: dict[str, Tensor] = {}

    def measure(name: str, unit: ResidualUnit, inputs: tuple[Any, ...]) -> None:
        x = inputs[0].to(torch.promote_types(inputs[0].dtype, torch.float32))
        found[name] = x.std(dim=(0, 2, 3), correction=0).mean() * cast(Tensor, unit.beta).abs()

    hooks = [
        unit.register_forward_pre_hook(lambda unit, inputs, name=name: measure(name, unit, inputs))
        for name, unit in units.items()
    ]
    try:
        # A compiled network may have been traced without the hooks.
        with torch.compiler.set_stance("force_eager"):
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return dict(zip(found, torch.stack(list(found.values())).tolist(), strict=True))


@torch.no_grad()
def rescale_gradient_windows(network: nn.Module, signal_widths: Mapping[str, float], width: float = 1.0) -> None:
    """Multiplies beta and the RSign shift of every residual unit by one number; the network computes the same.

    Args:
        network: that of `measure_signal_widths`.
        signal_widths: what it gave.
        width: what the widths become, greater than 0.

    Raises:
        InputError: no unit with a beta, or a width that is not a positive number.

    Example:
        >>> from bnfree.backbones import ReActNet18
        >>> network, images = ReActNet18(num_classes=10, width=8), torch.randn(16, 3, 32, 32)
        >>> rescale_gradient_windows(network, measure_signal_widths(network, images))
        >>> all(abs(width - 1) < 1e-3 for width in measure_signal_widths(network, images).values())
        True
    """
    check_width(width)
    units = _units(network)
    for name, now in signal_widths.items():
        # Where nothing varies there is no width to restore.
        if now > 1e-6:
            unit, factor = units[name], width / now
            cast(Tensor, unit.beta).mul_(factor)
            unit.rsign.shift.mul_(factor)
            if unit.pool is not None:
                cast(Tensor, cast(BinaryConv2d, unit.projection).gain).div_(factor)


def has_gradient_windows(network: nn.Module) -> bool:
    """Whether `rescale_gradient_windows` has something to do: a residual unit with a beta."""
    return any(isinstance(m, ResidualUnit) and m.beta is not None for m in network.modules())


def check_width(width: float) -> None:
    """Refuses a width that is not a finite number greater than 0.

    Raises:
        InputError: it is not.
    """
    if not 0 < width < float("inf"):
        raise InputError(f"width={width} must be a finite number greater than 0.")


def _units(network: nn.Module) -> dict[str, ResidualUnit]:
    if not has_gradient_windows(network):
        raise InputError("network has no residual unit with a beta; gradient windows are of norm='bn_free' networks.")
    units = {name: m for name, m in network.named_modules() if isinstance(m, ResidualUnit) and m.beta is not None}
    return {name: unit for name, unit in units.items() if unit.pool is None or _has_gain(unit.projection)}


def _has_gain(projection: BinaryConv2d | None) -> bool:
    return projection is not None and projection.gain is not None
