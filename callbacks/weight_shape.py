"""A penalty on the shape of the weights' distribution; what is computed is `bnfree.weight_shape`."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from bnfree.callbacks.strategies import refuse_sharded_parameters
from bnfree.errors import InputError
from bnfree.state_dicts import backbone_of
from bnfree.weight_shape import UNIFORM, layers_with_shape, weight_shape_penalty


class WeightShape(Callback):
    """Changes training: adds the gradient of a penalty on skewness and kurtosis of each layer's weights.

    Once in each optimizer step, after the processes have put their gradients together; behind
    `AdaptiveGradientClipping` in the list of callbacks it is not clipped. Logs `weight_shape/penalty` and for each
    layer `weight_shape/kurtosis/<layer>` when the trainer logs.

    Args:
        weights: as they are stored (`latent`) or `standardized`.
        skewness: weight of the squared skewness.
        kurtosis: weight of the squared distance of the kurtosis from `target`.
        target: 1.8 is that of a uniform law, 1 of +-1.

    Raises:
        InputError: a value out of range; at the start of a run also parameters split among processes, or no layers.
    """

    def __init__(
        self, weights: str = "latent", skewness: float = 1.0, kurtosis: float = 0.015, target: float = UNIFORM
    ) -> None:
        if weights not in ("latent", "standardized"):
            raise InputError(f"weights={weights!r} is not known; choose 'latent' or 'standardized'.")
        if skewness < 0 or kurtosis < 0 or not target >= 1:
            raise InputError(
                f"skewness={skewness} and kurtosis={kurtosis} must be at least 0, and target={target} at least 1, "
                "below which no law has its kurtosis."
            )
        self.weights, self.skewness, self.kurtosis, self.target = weights, skewness, kurtosis, target

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses what has no shape to look at."""
        if stage == "fit":
            refuse_sharded_parameters(trainer, "WeightShape")
            if not layers_with_shape(backbone_of(pl_module)):
                raise InputError("model has fewer than two layers with trained weights, for WeightShape to look at.")

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Adds the gradient."""
        layers = layers_with_shape(backbone_of(pl_module))
        weights = [layer.weight for layer in layers.values()]
        with torch.enable_grad():
            penalty, kurtoses = weight_shape_penalty(
                layers, self.weights == "standardized", self.skewness, self.kurtosis, self.target
            )
            gradients = torch.autograd.grad(penalty, weights)  # type: ignore[arg-type]
        for weight, gradient in zip(weights, gradients, strict=True):
            if weight.grad is not None:
                weight.grad.add_(gradient)  # type: ignore[operator]
        if trainer._logger_connector.should_update_logs:
            pl_module.log("weight_shape/penalty", penalty.detach(), on_step=True, on_epoch=False)
            for name, kurtosis in kurtoses.items():
                pl_module.log(f"weight_shape/kurtosis/{name}", kurtosis, on_step=True, on_epoch=False)
