"""The gradient windows of the signs, brought back to the width of the signal without a change of the network.

A sign passes gradients where its input beta * x + shift lies in a window around 0, |x| < 1 for most estimators. Batch
norm keeps the input at one width for all of a training. In a BN-free network beta is a constant, and the trunk grows:
measured on ReActNet18 of width 16 after 14 epochs, the standard deviation in front of the last sign has gone from 1 to
3.8, and 36 % of the values are left in the window (batch norm: 1.35, 61 %). Since sign(c z) = sign(z) for c > 0, beta and
shift can be multiplied by one number in every unit: signs and logits stay the same bit for bit, up to values within
rounding of a threshold, and the window has its width again.

This is our own; see docs/budget.md for what it does to accuracy.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from bnfree.backbones.residual import ResidualUnit
from bnfree.errors import InputError


@torch.no_grad()
def rescale_gradient_windows(network: nn.Module, images: Tensor, width: float = 1.0) -> dict[str, float]:
    """Multiplies beta and the RSign shift of every residual unit by one number, from one forward pass.

    Afterwards the mean over channels of the standard deviation of beta * x is `width`. The network computes the same.

    Args:
        network: a BN-free network with `ResidualUnit`s, such as `ReActNet18(norm="bn_free")`.
        images: (N, C, H, W), floating point, normalised as in training; a few hundred suffice.
        width: standard deviation to bring the inputs of the signs to, greater than 0.

    Returns:
        What that standard deviation was, by the name of the unit, in the order of the forward pass.

    Raises:
        InputError: no unit with a beta, images that are empty, or a width that is not a positive number.

    Example:
        >>> from bnfree.backbones import ReActNet18
        >>> network, images = ReActNet18(num_classes=10, width=8), torch.randn(16, 3, 32, 32)
        >>> widths = rescale_gradient_windows(network, images)
        >>> all(abs(width - 1) < 1e-3 for width in rescale_gradient_windows(network, images).values())
        True
    """
    units = {name: m for name, m in network.named_modules() if isinstance(m, ResidualUnit) and m.beta is not None}
    if not units:
        raise InputError("network has no residual unit with a beta; gradient windows are of norm='bn_free' networks.")
    if images.dim() != 4 or images.shape[0] == 0:
        raise InputError(f"images has shape {tuple(images.shape)}; it must be (N, C, H, W) with N > 0.")
    if not 0 < width < float("inf"):
        raise InputError(f"width={width} must be a finite number greater than 0.")
    found: dict[str, float] = {}

    def rescale(name: str, unit: ResidualUnit, inputs: tuple[Any, ...]) -> None:
        gain = None if unit.projection is None else unit.projection.gain
        if unit.pool is not None and gain is None:
            return
        x = inputs[0].to(torch.promote_types(inputs[0].dtype, torch.float32))
        beta = cast(Tensor, unit.beta)
        now = x.std(dim=(0, 2, 3), correction=0).mean() * beta.abs()
        found[name] = now.item()
        # Where nothing varies there is no width to restore.
        factor = torch.where(now > 1e-6, width / now, 1.0)
        beta.mul_(factor)
        unit.rsign.shift.mul_(factor)
        if unit.pool is not None:
            cast(Tensor, gain).div_(factor)

    hooks = [
        unit.register_forward_pre_hook(lambda unit, inputs, name=name: rescale(name, unit, inputs))
        for name, unit in units.items()
    ]
    try:
        # A compiled network may have been traced without the hooks.
        with torch.compiler.set_stance("force_eager"):
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found
