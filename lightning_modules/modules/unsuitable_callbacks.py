"""Callbacks of Lightning that would do nothing, or something else, to a binary network, and averages of its weights."""

from __future__ import annotations

from typing import Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder, ModelPruning, WeightAveraging
from torch import nn

from bnfree.convolution import FOREIGN_PRUNING, BinaryConv2d
from bnfree.errors import InputError
from bnfree.state_dicts import backbone_of


def refuse_unsuitable_callbacks(trainer: Trainer, backbone: nn.Module, rate_follows_batches: bool = True) -> None:
    """Refuses callbacks before the first step that would end or spoil the training later.

    Args:
        trainer: of the run.
        backbone: the network that it trains.
        rate_follows_batches: whether the learning rate depends on the batch size or the number of batches.

    Raises:
        InputError: `ModelPruning` on binary or standardised weights, or a network that torch has pruned there;
            `LearningRateFinder`; `BatchSizeFinder` beside such a learning rate.
    """
    layers = [layer for layer in backbone.modules() if isinstance(layer, BinaryConv2d)]
    if any(layer.loses_foreign_pruning for layer in layers):
        raise InputError(f"backbone: {FOREIGN_PRUNING}")
    for callback in cast(Any, trainer).callbacks:
        if isinstance(callback, ModelPruning) and any(layer.binary_weights or layer.standardize for layer in layers):
            raise InputError(f"trainer.callbacks=ModelPruning: {FOREIGN_PRUNING}")
        if isinstance(callback, LearningRateFinder):
            raise InputError(
                "trainer.callbacks=LearningRateFinder changes an attribute lr of the module, and here the rate belongs "
                "to the optimizer; compare a few short runs with --model.optimizer.lr=VALUE instead."
            )
        if isinstance(callback, BatchSizeFinder) and rate_follows_batches:
            raise InputError(
                "trainer.callbacks=BatchSizeFinder changes the batch size after the learning rate has been laid out "
                "for the batches that there were; give the size with --data.batch_size (`bnfree summary --memory` says "
                "what it takes), or train at a constant rate with --model.lr_scheduler=null and without "
                "learning_rate_scaling."
            )


def start_averages(trainer: Trainer, backbone: nn.Module) -> None:
    """Gives averages of weights, copies of the network as it was built, the weights that training starts from.

    With them come masks and lost rows, without which the lists of tensors that are averaged would not be the same.

    Args:
        trainer: of the run.
        backbone: the network that it trains.

    Raises:
        InputError: see `check_averages`.
    """
    check_averages(trainer, backbone)
    for callback in _averages(trainer):
        if callback._average_model is not None:
            backbone_of(callback._average_model.module).load_state_dict(backbone.state_dict())


def check_averages(trainer: Trainer, backbone: nn.Module) -> None:
    """Refuses averages of what has none.

    Args:
        trainer: of the run.
        backbone: the network that it trains.

    Raises:
        InputError: an average of buffers, where one says which rows are left or, of differences, which weights are.
    """
    layers = [layer for layer in backbone.modules() if isinstance(layer, BinaryConv2d)]
    rows = any(layer.kept_rows is not None for layer in layers)
    masks = any(layer.mask is not None for layer in layers)
    for callback in _averages(trainer):
        differences = not {"avg_fn", "multi_avg_fn"} & set(callback._kwargs)
        if callback._use_buffers and (rows or (masks and differences)):
            raise InputError(
                f"trainer.callbacks={type(callback).__name__} averages all buffers, and those that say which "
                f"{'rows' if rows else 'weights'} of a network are left have no average; set its use_buffers to false."
            )


def _averages(trainer: Trainer) -> list[Any]:
    return [callback for callback in cast(Any, trainer).callbacks if isinstance(callback, WeightAveraging)]
