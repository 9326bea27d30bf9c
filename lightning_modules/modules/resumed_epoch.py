"""Going on in the midst of an epoch with other batches than those it began with."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer


def count_batches_of_resumed_epoch(trainer: Trainer) -> None:
    """Lets a Trainer count the batches of an interrupted epoch as they are now, before its first step.

    A checkpoint has the number of batches trained on. With another batch size or number of processes the same images
    are another number of batches, and an epoch would end too early or too late.

    Args:
        trainer: the trainer, its states restored; nothing happens unless its data know their place in images.
    """
    batches_done: Any = getattr(trainer.train_dataloader, "batches_done", None)
    if batches_done is None:
        return
    done = batches_done(trainer.current_epoch)
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    if not done or done == progress.ready or progress.ready == 0:
        return
    # Saved at the end of a batch, which Lightning completes on its own when it starts.
    open_batches = progress.processed - progress.completed
    progress.ready = progress.started = progress.processed = done
    progress.completed = done - open_batches
