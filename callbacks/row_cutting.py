"""What callbacks that remove rows in the middle of a training have in common."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from bnfree.callbacks.adaptive_gradient_clipping import AdaptiveGradientClipping
from bnfree.callbacks.strategies import refuse_sharded_parameters
from bnfree.compression.rows import count_rows, remove_rows, row_layers
from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError
from bnfree.state_dicts import backbone_of

CUT = ("MaskSparsity", "LayerThresholds")
# Of these, what they keep of every filter would be of another size after a cut.
KEEPS_FILTERS = (
    "Bop", "EarlyBird", "FlipSchedule", "LatentSphere", "LotteryTicket", "MultiPrizeTicket", "SilentWeightDecay",
)  # fmt: skip


def layers_to_cut(trainer: Trainer, pl_module: LightningModule, callback: str) -> dict[str, BinaryConv2d]:
    """The convolutions whose rows can go, which all have a trained gain.

    Args:
        trainer: of the run.
        pl_module: what it trains.
        callback: who asks, for messages.

    Raises:
        InputError: no such convolutions, no gains, parameters split among processes, or another callback that keeps
            something of every filter.
    """
    refuse_sharded_parameters(trainer, callback)
    network = backbone_of(pl_module)
    layers = row_layers(network)
    if not layers:
        raise InputError(
            f"backbone={type(network).__name__} has no residual units of one group whose rows {callback} could cut; "
            "remove the callback, or take a ReActNet without group_size."
        )
    if any(layer.gain is None or not layer.gain.requires_grad for layer in layers.values()):
        raise InputError(
            f"backbone={type(network).__name__} has no trained gains, by which {callback} tells rows; take "
            "norm='bn_free' and freeze='none', or remove the callback."
        )
    for other in cast(Any, trainer).callbacks:
        if type(other).__name__ in CUT and type(other).__name__ != callback:
            raise InputError(f"trainer.callbacks={type(other).__name__} and {callback} both cut rows; remove one.")
        if isinstance(other, WeightAveraging | StochasticWeightAveraging) or type(other).__name__ in KEEPS_FILTERS:
            raise InputError(
                f"trainer.callbacks={type(other).__name__} keeps something of every filter, and {callback} cuts "
                "filters in the middle of the run; remove one of the two."
            )
    return layers


def stand_behind_clipping(trainer: Trainer, callback: Any) -> None:
    """Puts a callback behind `AdaptiveGradientClipping`, so that what it adds to gradients is not clipped."""
    callbacks = list(cast(Any, trainer).callbacks)
    last = max((i for i, c in enumerate(callbacks) if isinstance(c, AdaptiveGradientClipping)), default=-1)
    if callbacks.index(callback) < last:
        callbacks.insert(last + 1, callback)
        callbacks.remove(callback)
        # A new list: Lightning may be walking through the old one.
        cast(Any, trainer).callbacks = callbacks


def cut_rows(trainer: Trainer, pl_module: LightningModule, rows: Mapping[str, Tensor], callback: str) -> None:
    """Removes rows from the network that is trained, and all that goes with them.

    The optimizers keep what they hold of the rows that are left. Processes get their gradients together by a new
    wrapper, whose buckets have the new sizes. Checkpoints of the best epoch are chosen anew from here on: those from
    before are of a larger network.

    Args:
        trainer: of the run, between two epochs.
        pl_module: what it trains.
        rows: output channels that go, by layer.
        callback: who cuts, for the log.
    """
    network = backbone_of(pl_module)
    before, whole = count_rows(network)
    remove_rows(network, rows, trainer.optimizers)
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy):
        # The old wrapper holds on to gradients of the old sizes until it is gone.
        strategy.model = pl_module
        gc.collect()
        strategy.configure_ddp()
    for checkpoint in trainer.checkpoint_callbacks:
        if isinstance(checkpoint, ModelCheckpoint) and checkpoint.monitor:
            _forget_best(checkpoint)
    after, _ = count_rows(network)
    rank_zero_info(f"{callback} has cut {before - after} of {before} rows; {after / whole:.1%} of all are left.")


def say_nothing_was_cut(trainer: Trainer, epoch: int, callback: str) -> None:
    """Says that a run has ended, or is one too short, before rows were cut.

    Args:
        trainer: of the run.
        epoch: at whose start they would have been, from 0.
        callback: who cuts, for the log.
    """
    rank_zero_info(
        f"{callback} has cut nothing: the run ended after {trainer.current_epoch} epochs, and rows are cut after "
        f"{epoch}."
    )


def _forget_best(checkpoint: ModelCheckpoint) -> None:
    """The files stay where they are, and whatever comes next is better."""
    worst = torch.tensor(-torch.inf if checkpoint.mode == "max" else torch.inf)
    checkpoint.best_k_models = dict.fromkeys(checkpoint.best_k_models, worst)
    if checkpoint.best_k_models:
        checkpoint.kth_value = checkpoint.best_model_score = worst
