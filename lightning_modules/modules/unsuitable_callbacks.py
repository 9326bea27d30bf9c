"""Callbacks of Lightning that would do nothing, or something else, to a binary network."""

from __future__ import annotations

from typing import Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateFinder, ModelPruning
from torch import nn

from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError


def refuse_unsuitable_callbacks(trainer: Trainer, backbone: nn.Module) -> None:
    """Refuses callbacks before the first step that would end or spoil the training later.

    Args:
        trainer: of the run.
        backbone: the network that it trains.

    Raises:
        InputError: `ModelPruning` on binary or standardised weights, `LearningRateFinder`.
    """
    layers = [layer for layer in backbone.modules() if isinstance(layer, BinaryConv2d)]
    for callback in cast(Any, trainer).callbacks:
        if isinstance(callback, ModelPruning) and any(layer.binary_weights or layer.standardize for layer in layers):
            raise InputError(
                "trainer.callbacks=ModelPruning zeroes latent weights, which standardisation and the sign of 0 make "
                "others than 0: nothing would be pruned; use bnfree.callbacks.LotteryTicket or bnfree lottery run."
            )
        if isinstance(callback, LearningRateFinder):
            raise InputError(
                "trainer.callbacks=LearningRateFinder changes an attribute lr of the module, and here the rate belongs "
                "to the optimizer; compare a few short runs with --model.optimizer.lr=VALUE instead."
            )
