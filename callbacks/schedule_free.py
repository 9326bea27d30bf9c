"""Tells a schedule-free optimizer which of its two sets of weights is wanted."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from bnfree.errors import InputError


class ScheduleFree(Callback):
    """Changes evaluation: a network is evaluated and kept in checkpoints with the averaged weights.

    For optimizers with methods `train` and `eval`, as those of the package `schedulefree` have: gradients are taken at
    one set of weights, and the average of others is what has been learned. Averaged weights lie in the network whenever
    no training step runs.

    Raises:
        InputError: at the start of a training, an optimizer without the two methods, or a learning-rate schedule.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses what has no two sets of weights."""
        for optimizer in trainer.optimizers:
            if not callable(getattr(optimizer, "train", None)) or not callable(getattr(optimizer, "eval", None)):
                raise InputError(
                    f"optimizer={type(optimizer).__name__} has no train() and eval(), which ScheduleFree switches; "
                    "take bnfree.optimizers.schedule_free.AdamWScheduleFree, or remove the callback."
                )
        if trainer.lr_scheduler_configs:
            raise InputError("ScheduleFree takes the place of a schedule; set model.lr_scheduler to null.")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Weights at which gradients are taken."""
        _switch(trainer, "train")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Averaged weights, before anything else looks at them or keeps them."""
        # Batches are accumulated at the weights at which the first gradient was taken, which do not change.
        _switch(trainer, "eval")


def _switch(trainer: Trainer, mode: str) -> None:
    optimizers: list[Any] = list(trainer.optimizers)
    for optimizer in optimizers:
        getattr(optimizer, mode)()
