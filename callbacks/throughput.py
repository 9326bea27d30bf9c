"""How fast training goes, and what share of it waits for data."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from bnfree.bar_items import is_read_in_every_step


class Throughput(Callback):
    """Only observes: images trained on per second, and the share of the time that goes by waiting for them.

    Logs `throughput/images_per_second`, of all processes together, and `throughput/data_wait` (0 to 1), of the first
    process, every `trainer.log_every_n_steps` steps over the steps since the last time; a progress bar shows them as
    `img/s` and `wait`. Validation and the writing of checkpoints do not count.

    A clock is read three times a step and nothing else is done: a GPU, which works behind the process that feeds it, is
    never waited for (Lightning's `ThroughputMonitor` does so in every step, as do bars other than `TrainingBar`). Hence
    the rate is right over several steps and not over one, and time in which the process waits for data while the GPU is
    busy counts as waiting too. Waiting is all from the end of a step to the next batch on its device: reading,
    augmentation, transfer.
    """

    def __init__(self) -> None:
        self._last_end: float | None = None
        self._start = 0.0
        self._since_logged, self._of_epoch = _Sums(), _Sums()
        self.bar_items: dict[str, float] = {}

    def epoch_summary(self) -> tuple[float, float] | None:
        """Images per second and share of waiting (0 to 1) of the epoch so far; None if no images were counted."""
        return self._of_epoch.rates()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets an earlier run."""
        self._last_end = None
        self._since_logged, self._of_epoch = _Sums(), _Sums()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Waits for the epoch's first batch."""
        self._of_epoch = _Sums()
        self._last_end = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The batch is there."""
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts; logs when Lightning does."""
        end = time.perf_counter()
        wait = 0.0 if self._last_end is None else self._start - self._last_end
        for sums in (self._since_logged, self._of_epoch):
            sums.images += _count_images(batch) * trainer.world_size
            sums.wait += wait
            sums.seconds += end - self._start + wait
        if trainer._logger_connector.should_update_logs and not trainer.fit_loop._should_accumulate():
            self._log(trainer, pl_module)
        self._last_end = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What comes between two batches now is not waiting for data."""
        self._last_end = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """As a validation."""
        self._last_end = None

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rates, self._since_logged = self._since_logged.rates(), _Sums()
        if rates is None:
            return
        images_per_second, wait = rates
        values = {"throughput/images_per_second": images_per_second, "throughput/data_wait": wait}
        pl_module.log_dict(values, on_step=True, on_epoch=False)
        self.bar_items = {"img/s": float(round(images_per_second)), "wait": round(wait, 2)}
        if is_read_in_every_step(trainer):
            pl_module.log_dict(self.bar_items, on_step=True, on_epoch=False, prog_bar=True, logger=False)


class _Sums:
    def __init__(self) -> None:
        self.images, self.wait, self.seconds = 0, 0.0, 0.0

    def rates(self) -> tuple[float, float] | None:
        if not self.images or self.seconds <= 0:
            return None
        return self.images / self.seconds, self.wait / self.seconds


def _count_images(batch: Any) -> int:
    first = batch[0] if isinstance(batch, list | tuple) and batch else batch
    return len(first) if isinstance(first, Tensor) and first.dim() else 0
