"""ReSTE's two indicators: how far a weight estimator is from the sign, and how unsteady its gradients are."""

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
from bnfree.standardization import standardize_weight
from bnfree.state_dicts import backbone_of


class EstimatorIndicators(Callback):
    """Only observes: logs `estimator/error` and `estimator/instability` once an epoch.

    Source: ReSTE (Wu et al., ICCV 2023). Over the binary convolutions,

        error        sum over layers of ||f(w) - sign(w)||_2, w the argument of the weight estimator: the weight in
                     units of its standard deviation, in plain layers sqrt(fan-in) times the weight
        instability  sum over layers of the variance of |gradient| of the latent weight

    f is what the estimator's slope is the derivative of, its `surrogate`; the identity through clamp(w, -1, 1) where no
    weight estimator is given. Measured at the last optimizer step of each epoch, after gradients have been gathered.

    Raises:
        InputError: at the start of a run, parameters split among processes (FSDP, model parallelism, DeepSpeed), no
            binary weights, or a weight estimator without a `surrogate`.
    """

    def __init__(self) -> None:
        self._layers: list[BinaryConv2d] = []
        self._instability: Tensor | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses what cannot be measured."""
        if stage != "fit":
            return
        refuse_sharded_parameters(trainer, "EstimatorIndicators")
        network = backbone_of(pl_module)
        self._layers = [layer for layer in convolutions(network).values() if layer.binary_weights]
        if not self._layers:
            raise InputError(
                f"backbone={type(network).__name__} has no binary weights, so EstimatorIndicators has nothing to "
                "measure; remove the callback."
            )
        estimator = self._layers[0].weight_estimator
        if estimator is not None and not hasattr(estimator, "surrogate"):
            raise InputError(
                f"weight_estimator={estimator.__name__} has no surrogate(x), of which its slope is the derivative, for "
                "EstimatorIndicators to compare with the sign; remove the callback."
            )

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Measures the gradients; those of the epoch's last step are logged."""
        self._instability = instability(self._layers)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs both."""
        pl_module.log("estimator/error", estimating_error(self._layers), on_step=False, on_epoch=True, sync_dist=True)
        if self._instability is not None:
            pl_module.log("estimator/instability", self._instability, on_step=False, on_epoch=True, sync_dist=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lets go of the network."""
        self._layers, self._instability = [], None


@torch.no_grad()
def estimating_error(layers: list[BinaryConv2d]) -> Tensor:
    """Sum over layers of ||f(w) - sign(w)||_2, a number ()."""
    errors = []
    for layer in layers:
        latent, mask = layer.latent_weight(), layer.mask
        count = latent[0].numel() if mask is None else mask.sum((1, 2, 3), keepdim=True).clamp(min=1)
        # Plain layers take the sign of the weight as it is.
        weight = (standardize_weight(latent, mask, layer.eps) if layer.standardize else latent) * count**0.5
        estimator: Any = layer.weight_estimator
        if estimator is None:
            surrogate = weight.clamp(-1, 1)
        elif estimator.scheduled:
            surrogate = estimator.surrogate(weight, layer.estimator_progress)
        else:
            surrogate = estimator.surrogate(weight)
        difference = surrogate - torch.where(weight >= 0, 1.0, -1.0)
        errors.append(torch.linalg.vector_norm(difference if mask is None else difference * mask))
    return torch.stack(errors).sum()


@torch.no_grad()
def instability(layers: list[BinaryConv2d]) -> Tensor | None:
    """Sum over layers of the variance of |gradient|, a number (); None where there are no gradients."""
    found = [layer.weight.grad.abs().var(correction=0) for layer in layers if layer.weight.grad is not None]
    return torch.stack(found).sum() if found else None
