"""Lightning's training loops, whose checkpoints a run goes on from exactly as if it had never been interrupted.

Lightning writes a checkpoint in the midst of what happens at the end of a batch, a validation or an epoch: other
callbacks and loggers have then done their part or have not, and a run that goes on from there cannot know which. Here
checkpoint callbacks come last of all, once nothing else of the moment is left to do.
"""

from __future__ import annotations

import random
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.utilities.exceptions import SIGTERMException

from bnfree.lightning_modules.training.metrics_so_far import gather, metrics_so_far, restore_metrics

HELD = ("on_train_batch_end", "on_validation_end", "on_train_epoch_end")


def make_resumable(trainer: Trainer) -> None:
    """Gives a Trainer the loops of this module, before it has run anything.

    Args:
        trainer: just built.
    """
    given = trainer.fit_loop
    epochs = given.epoch_loop
    # The Trainer keeps its limits of steps in the loop that it has made, and takes them from the one that it has.
    loop = ExactFitLoop(trainer, min_epochs=given.min_epochs, max_epochs=given.max_epochs)
    loop.epoch_loop = ExactEpochLoop(trainer, min_steps=epochs.min_steps, max_steps=epochs.max_steps)
    trainer.fit_loop = loop


class HeldSaves:
    """Hooks of checkpoint callbacks that wait for all others.

    Args:
        trainer: whose callbacks they are.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._waiting: list[tuple[ModelCheckpoint, str, tuple[Any, ...]]] = []

    def hold(self) -> None:
        """Lets them wait from now on."""
        for callback in self.callbacks():
            for name in HELD:
                setattr(callback, name, partial(self._wait, callback, name))

    def let_go(self) -> None:
        """Ends it."""
        self._waiting.clear()
        for callback in self.callbacks():
            for name in HELD:
                callback.__dict__.pop(name, None)

    def release(self, only: str | None = None) -> None:
        """Calls what waits: first what follows a metric, so that what is saved last knows of the best.

        Args:
            only: the hook of this name alone; the others are dropped.
        """
        waiting, self._waiting = self._waiting, []
        waiting.sort(key=lambda call: call[0].monitor is None)
        for callback, name, arguments in waiting:
            if only in (None, name):
                getattr(type(callback), name)(callback, *arguments)

    def call_unmonitored(self, name: str, *arguments: Any) -> None:
        """Calls a hook of the callbacks that follow no metric, which does not wait."""
        for callback in self.callbacks():
            if callback.monitor is None:
                getattr(type(callback), name)(callback, *arguments)

    def _wait(self, callback: ModelCheckpoint, name: str, *arguments: Any) -> None:
        # A batch has served its purpose by then, and nobody needs its memory.
        kept = (*arguments[:2], None, None, arguments[-1]) if name == "on_train_batch_end" else arguments
        self._waiting.append((callback, name, kept))

    def callbacks(self) -> list[ModelCheckpoint]:
        """The checkpoint callbacks."""
        return [callback for callback in self.trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]


class ExactEpochLoop(_TrainingEpochLoop):
    """The batches of an epoch; what a checkpoint holds of them is enough to go on exactly."""

    def __init__(self, trainer: Trainer, min_steps: int | None = None, max_steps: int = -1) -> None:
        super().__init__(trainer, min_steps=min_steps, max_steps=max_steps)
        self.saves = HeldSaves(trainer)
        self.restored: dict[str, Any] = {}
        self.between_batches = False
        """Whether nothing is left to do for the last batch, and nothing has begun with the next one."""
        self.batch_is_done = False
        """Whether a run before this one has trained on a batch and this one has to end it."""
        self._starts_with_a_batch = False

    def on_save_checkpoint(self) -> dict[str, Any]:
        """Adds what Lightning leaves out; to be called in all processes, as a checkpoint is written by all."""
        for logger in self.trainer.loggers:
            # What a checkpoint says has happened must be in the files, should the process end now.
            logger.save()
        state = super().on_save_checkpoint()
        state["settled"] = self.between_batches and not self._should_accumulate()
        rows = [getattr(logger, "rows", None) for logger in self.trainer.loggers]
        state["rows"] = next((number for number in rows if isinstance(number, int)), None)
        # Lightning writes it and does not read it.
        state["current_scores"] = {callback.state_key: callback.current_score for callback in self.saves.callbacks()}
        batches: Any = self.batch_progress.current
        if batches.started != batches.ready or batches.processed == batches.started:
            # While a batch is trained on, its sums are those of a part, and the batch will come again.
            state["metrics"] = metrics_so_far(self.trainer)
            state["random"] = gather(self.trainer, _random_state())
        return state

    def on_load_checkpoint(self, state_dict: dict[str, Any]) -> None:
        """Takes what has been added."""
        super().on_load_checkpoint(state_dict)
        self.restored = state_dict

    def load_state_dict(self, state_dict: dict[str, Any], prefix: str = "") -> None:
        """Restores; a batch that has been saved at its end still has its validation before it."""
        super().load_state_dict(state_dict, prefix)
        progress: Any = self.batch_progress
        total, current = progress.total, progress.current
        if "settled" in self.restored and total.processed == total.ready == total.completed + 1:
            total.completed, current.completed = total.processed, current.processed
            self.batch_is_done = True

    def restore(self) -> None:
        """Goes on with the metrics and random numbers of the checkpoint, once all else is restored."""
        restored, self.restored = self.restored, {}
        if "metrics" in restored:
            restore_metrics(self.trainer, restored["metrics"])
        for callback in self.saves.callbacks():
            callback.current_score = restored.get("current_scores", {}).get(callback.state_key, callback.current_score)
        states = restored.get("random", [])
        if len(states) == self.trainer.world_size:
            _set_random_state(states[self.trainer.global_rank])
        self._starts_with_a_batch = restored.get("settled", False)

    def advance(self, data_fetcher: Any) -> None:
        """Trains on a batch, or only ends one on which a run before this one has trained."""
        if self._starts_with_a_batch or self.batch_is_done:
            # Lightning would ask itself whether a validation has been interrupted.
            self.restarting = False
        self._starts_with_a_batch = self.between_batches = False
        if self.batch_is_done:
            self.batch_is_done = False
            return
        super().advance(data_fetcher)

    def on_advance_end(self, data_fetcher: Any) -> None:
        """Validates if that is due; then come checkpoints, unless the end of the epoch is to come."""
        stop: SIGTERMException | None = None
        try:
            super().on_advance_end(data_fetcher)
        except SIGTERMException as error:
            stop = error
        self.between_batches = True
        if self._should_accumulate():
            # Half a step cannot be gone on from. A best checkpoint is that of the weights which were evaluated.
            self.saves.release(only="on_validation_end")
            return
        if stop is not None or not self.done:
            self.saves.release()
        if stop is not None:
            raise stop

    def _broadcast_sigterm_tensor(self) -> None:
        # All processes are amid the same step.
        if not self._should_accumulate():
            super()._broadcast_sigterm_tensor()


class ExactFitLoop(_FitLoop):
    """The epochs of a fit."""

    epoch_loop: ExactEpochLoop

    def load_state_dict(self, state_dict: dict[str, Any], prefix: str = "") -> None:
        """Restores; after the end of an epoch nothing of it is left to do."""
        super().load_state_dict(state_dict, prefix)
        epochs: Any = self.epoch_progress
        if self.epoch_loop.restored.get("settled") and epochs.total.processed == epochs.total.ready:
            epochs.total.completed = epochs.total.processed
            epochs.current.completed = epochs.current.processed
            # Where steps limit a run, Lightning would end the finished epoch a second time.
            cast(Any, _Loop.restarting).fset(self, False)
            # No sanity check, after which its counts would be those of no validation.
            self.epoch_loop.val_loop.restarting = True

    @property
    def done(self) -> bool:
        """Whether training is over; not while a batch waits for its end."""
        return not self.epoch_loop.batch_is_done and super().done

    def on_run_start(self) -> None:
        """Starts training."""
        super().on_run_start()
        self.epoch_loop.restore()
        self.epoch_loop.saves.hold()

    def on_advance_end(self) -> None:
        """Ends an epoch; then come checkpoints."""
        saves = self.epoch_loop.saves
        if not self.epoch_loop._is_training_done:
            # Stopped within an epoch, of which a run that goes on has the rest before it.
            saves.release()
            saves.call_unmonitored("on_train_epoch_end", self.trainer, self.trainer.lightning_module)
        self.epoch_loop.between_batches = False
        stop: SIGTERMException | None = None
        try:
            super().on_advance_end()
        except SIGTERMException as error:
            stop = error
        self.epoch_loop.between_batches = True
        counts = (self.epoch_progress.total, self.epoch_progress.current)
        for count in counts:
            # Checkpoints have always been of the moment before the last count of an epoch.
            count.completed -= 1
        saves.release()
        for count in counts:
            count.completed += 1
        if stop is not None:
            raise stop

    def on_run_end(self) -> None:
        """Ends training."""
        self.epoch_loop.saves.let_go()
        super().on_run_end()

    def teardown(self) -> None:
        """After an error, too."""
        self.epoch_loop.saves.let_go()
        super().teardown()


def _random_state() -> dict[str, Any]:
    kind, keys, *rest = cast(Any, np.random.get_state(legacy=True))
    state = {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": [kind, keys.tolist(), *rest]}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
