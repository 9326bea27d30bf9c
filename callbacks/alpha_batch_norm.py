"""Evaluation of a batch-norm network with a share of the statistics of the batch that is evaluated."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from bnfree.errors import InputError
from bnfree.state_dicts import backbone_of


class AlphaBatchNorm(Callback):
    """Changes evaluation, and no training: batch norm takes (1 - alpha) moving + alpha batch statistics.

    Source: alpha-BN (You et al., arXiv 2110.04065). How far the accuracy moves shows how much a batch-norm network
    depends on statistics of training images; networks without normalisation have none. Results then depend on the
    batch size and on which images share a batch.

    Args:
        alpha: share of the batch that is evaluated, from 0 (ordinary evaluation) to 1.

    Raises:
        InputError: a value out of range; at the start of a run also a network without batch norm.

    Example:
        >>> trainer = Trainer(callbacks=[AlphaBatchNorm(0.1)], logger=False)
    """

    def __init__(self, alpha: float = 0.1) -> None:
        if not 0 <= alpha <= 1:
            raise InputError(f"alpha={alpha} must be from 0 to 1.")
        self.alpha = alpha

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a network without batch norm."""
        if not _layers(pl_module):
            raise InputError(
                f"backbone={type(backbone_of(pl_module)).__name__} has no batch norm with moving statistics, so that "
                "AlphaBatchNorm has nothing to mix; remove the callback."
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins to mix."""
        self._begin(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends it."""
        _end(pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins to mix."""
        self._begin(pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends it."""
        _end(pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins to mix."""
        self._begin(pl_module)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends it."""
        _end(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Ends it."""
        _end(pl_module)

    def _begin(self, pl_module: LightningModule) -> None:
        for layer in _layers(pl_module):
            layer.__dict__["forward"] = _Mixed(layer, self.alpha)


class _Mixed:
    """The forward of a batch norm in evaluation, with mixed statistics."""

    def __init__(self, layer: nn.BatchNorm2d, alpha: float) -> None:
        self.layer, self.alpha = layer, alpha

    def __call__(self, x: Tensor) -> Tensor:
        layer: Any = self.layer
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        mean = torch.lerp(layer.running_mean, mean.to(layer.running_mean.dtype), self.alpha)
        variance = torch.lerp(layer.running_var, variance.to(layer.running_var.dtype), self.alpha)
        return F.batch_norm(x, mean, variance, layer.weight, layer.bias, False, 0.0, layer.eps)


def _layers(pl_module: LightningModule) -> list[nn.BatchNorm2d]:
    return [m for m in pl_module.modules() if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None]


def _end(pl_module: LightningModule) -> None:
    for layer in _layers(pl_module):
        layer.__dict__.pop("forward", None)
