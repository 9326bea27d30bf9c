"""BiPer's pull of latent weights towards the middle of a half period, or towards its ends."""

from __future__ import annotations

from typing import Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from bnfree.convolution import BinaryConv2d
from bnfree.diagnostics.signs import convolutions
from bnfree.errors import InputError
from bnfree.state_dicts import backbone_of
from bnfree.weight_transforms import FunctionTransform
from bnfree.weight_transforms.biper import FREQUENCY, biper


class PeriodicRegularizer(Callback):
    """Changes training: adds the gradient of strength * mean(f(20 v)) for the latent weights v of every `biper` layer.

    f is cos^2, smallest where the sine is 1 or -1, or sin^2, smallest where it is 0. BiPer's code (CVPR 2024) has sin^2
    and strength 0.037 in stage 1, 0.047 in stage 2; which of both the paper means is not known to us, and neither is on
    by default. Gradients that are clipped are clipped with it where clipping comes later in the list of callbacks.

    Args:
        kind: `cos2` or `sin2`.
        strength: greater than 0.

    Raises:
        InputError: a value out of range; at the start of a training, a network without `weight_transform='biper'`.
    """

    def __init__(self, kind: Literal["cos2", "sin2"] = "cos2", strength: float = 0.037) -> None:
        if kind not in ("cos2", "sin2"):
            raise InputError(f"kind={kind!r} is not known; choose 'cos2' or 'sin2'.")
        if not 0 < strength < float("inf"):
            raise InputError(f"strength={strength} must be a finite number greater than 0.")
        self.kind, self.strength = kind, strength

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a network without anything periodic."""
        if stage == "fit" and not _periodic(pl_module):
            raise InputError(
                "PeriodicRegularizer finds no layer with weight_transform='biper' in the network; give it one or "
                "remove the callback."
            )

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Adds the gradients."""
        sign = 1.0 if self.kind == "sin2" else -1.0
        for layer in _periodic(pl_module):
            if layer.weight.grad is not None:
                layer.weight.grad.add_(periodic_gradient(layer.weight), alpha=sign * self.strength)


@torch.no_grad()
def periodic_gradient(weight: Tensor) -> Tensor:
    """The gradient of mean(sin(20 v)^2), of the shape of `weight`."""
    return torch.sin(2 * FREQUENCY * weight) * (FREQUENCY / weight.numel())


def _periodic(pl_module: LightningModule) -> list[BinaryConv2d]:
    found = []
    for layer in convolutions(backbone_of(pl_module)).values():
        transform = layer.weight_transform
        if isinstance(transform, FunctionTransform) and transform.function is biper:
            found.append(layer)
    return found
