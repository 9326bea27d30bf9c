"""Bop: binary weights that are flipped by an optimizer of their own, without latent weights."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from bnfree.callbacks.strategies import refuse_sharded_parameters
from bnfree.convolution import BinaryConv2d
from bnfree.diagnostics.signs import convolutions
from bnfree.errors import InputError
from bnfree.state_dicts import backbone_of


class Bop(Callback):
    """Changes training: flips the weights of binary convolutions where the mean gradient asks for it for long enough.

        m <- (1 - gamma) m + gamma g,   w <- -w where |m| > threshold and m has the sign of w

    Everything else is trained by the run's own optimizer, which is given no gradient for these weights. They have one
    magnitude, 1 / sqrt(fan-in), from the first step on. A callback and not an optimizer, since parameters do not know
    whether they are binary.

    Source: Helwegen et al., "Latent Weights Do Not Exist" (NeurIPS 2019, arXiv 1906.02107) with larq's defaults.
    Deviation: g is the gradient of what is standardised, where that is the method.

    Args:
        gamma: adaptivity, from 0 to 1.
        threshold: at least 0.

    Raises:
        InputError: a value out of range; at the start of a training also parameters split among processes (FSDP, model
            parallelism, DeepSpeed), or a network without binary weights that are trained.
    """

    def __init__(self, gamma: float = 1e-4, threshold: float = 1e-8) -> None:
        if not 0 < gamma <= 1:
            raise InputError(f"gamma={gamma} must be greater than 0 and at most 1.")
        if not threshold >= 0:
            raise InputError(f"threshold={threshold} must be at least 0.")
        self.gamma, self.threshold = gamma, threshold
        self._layers: dict[str, BinaryConv2d] = {}
        self._means: dict[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a network without anything to flip."""
        if stage != "fit":
            return
        refuse_sharded_parameters(trainer, "Bop")
        network, layers = backbone_of(pl_module), convolutions(backbone_of(pl_module))
        self._layers = {n: layer for n, layer in layers.items() if layer.binary_weights and layer.weight.requires_grad}
        if not self._layers:
            raise InputError(
                f"backbone={type(network).__name__} has no binary weights that are trained, so Bop has nothing to "
                "flip; set binary_weights=true or remove the callback."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves signs alone of latent weights, before calibration."""
        if trainer.global_step == 0:
            for layer in self._layers.values():
                to_signs(layer)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Flips, and takes the gradients away."""
        for name, layer in self._layers.items():
            gradient = layer.weight.grad
            if gradient is None:
                continue
            if name not in self._means:
                self._means[name] = torch.zeros_like(gradient)
            # What a checkpoint holds comes before the network is on its device.
            self._means[name] = self._means[name].to(gradient.device)
            flip(layer.weight, self._means[name], gradient, self.gamma, self.threshold)
            layer.weight.grad = None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lets go of the network."""
        if stage == "fit":
            self._layers, self._means = {}, {}

    def state_dict(self) -> dict[str, Any]:
        """The mean gradients of every layer."""
        return {"means": {name: mean.cpu() for name, mean in self._means.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes them."""
        self._means = {
            name: mean.to(self._layers[name].weight)
            for name, mean in state_dict["means"].items()
            if name in self._layers
        }


@torch.no_grad()
def to_signs(layer: BinaryConv2d) -> None:
    """Gives the latent weights of a layer one magnitude, and the signs that the layer uses."""
    centred = layer.weight - layer.weight.mean((1, 2, 3), keepdim=True) if layer.standardize else layer.weight
    size = layer.weight.shape[1:].numel() ** -0.5
    layer.weight.copy_(torch.where(centred >= 0, size, -size))


@torch.no_grad()
def flip(weight: Tensor, mean: Tensor, gradient: Tensor, gamma: float, threshold: float) -> None:
    """One step of Bop, in place on `weight` and on the mean gradient."""
    mean.lerp_(gradient.to(mean.dtype), gamma)
    weight.mul_(torch.where(mean * weight.sign() > threshold, -1, 1))
