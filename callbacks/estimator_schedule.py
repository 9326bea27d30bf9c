"""The course of a sign's gradient estimator over a training; the estimators are `bnfree.estimators`."""

from __future__ import annotations

from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from bnfree.errors import InputError


class EstimatorSchedule(Callback):
    """Changes training: takes every scheduled estimator of a network, of signs and weights, from its start to its end.

    Progress is the share of the run's optimizer steps that lie behind: 0 at the first, 1 at the end. It is a function
    of where the run stands, so that a run that goes on has the values of one that was not interrupted; one that goes on
    with another length goes on at another place. What an estimator makes of it is its own.

    Args:
        interval: whether estimators move before every `epoch`, as in their publications, or before every `step`.
        end: where the progress ends, at the run's end: less than 1 leaves the last part of a schedule out.

    Raises:
        InputError: a value out of range; at the start of a run also a network without a scheduled estimator, or a run
            without an end.

    Example:
        >>> trainer = Trainer(callbacks=[EstimatorSchedule()], logger=False)
    """

    def __init__(self, interval: Literal["epoch", "step"] = "epoch", end: float = 1.0) -> None:
        if interval not in ("epoch", "step"):
            raise InputError(f"interval={interval!r} is not known; choose 'epoch' or 'step'.")
        if not 0 < end <= 1:
            raise InputError(f"end={end} must be greater than 0 and at most 1.")
        self.interval, self.end = interval, end
        self.progress: float | None = None
        """What the estimators have, from 0 to 1; None before a training."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a network without anything to drive."""
        if stage == "fit" and not scheduled(pl_module):
            raise InputError(
                "EstimatorSchedule finds no estimator with a schedule in the network; choose one, such as "
                "estimator='reste', or remove the callback."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes up the progress of a checkpoint."""
        total = trainer.estimated_stepping_batches
        if not 0 < total < float("inf"):
            raise InputError(
                f"trainer.max_epochs={trainer.max_epochs} gives EstimatorSchedule no end; set trainer.max_epochs or "
                "trainer.max_steps to a positive number."
            )
        self._set(pl_module, self.progress or 0.0)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Moves the estimators, where it is time."""
        if self.interval == "step" or batch_idx == 0:
            self._set(pl_module, self.end * min(trainer.global_step / trainer.estimated_stepping_batches, 1.0))

    def state_dict(self) -> dict[str, Any]:
        """The progress, for a run that goes on in the middle of an epoch."""
        return {"progress": self.progress}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it."""
        self.progress = state_dict["progress"]

    def _set(self, pl_module: LightningModule, progress: float) -> None:
        self.progress = progress
        for buffer in scheduled(pl_module):
            buffer.fill_(progress)


def scheduled(pl_module: LightningModule) -> list[Tensor]:
    """The progress buffers () of all scheduled estimators."""
    found = (getattr(module, "estimator_progress", None) for module in pl_module.modules())
    return [buffer for buffer in found if isinstance(buffer, Tensor)]
