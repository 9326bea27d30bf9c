"""Progress where there is no terminal."""

from __future__ import annotations

import time
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from bnfree.callbacks.throughput import Throughput


class EpochLines(Callback):
    """Only observes: prints one line for each epoch, where the many lines of a progress bar would flood a log."""

    def __init__(self) -> None:
        self._start = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock, also of an epoch that is resumed in its middle."""
        self._start = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock of an epoch."""
        self._start = time.monotonic()

    @rank_zero_only
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the line, with the metrics of training and validation."""
        metrics = trainer.callback_metrics
        names = sorted(name for name in metrics if name.startswith(("train/", "val/")))
        shown = "  ".join(f"{name} {float(metrics[name]):.4f}" for name in names)
        total = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
        seconds = time.monotonic() - self._start
        print(f"epoch {trainer.current_epoch + 1}{total}  {shown}  ({seconds:.1f} s{_throughput(trainer)})", flush=True)


def _throughput(trainer: Trainer) -> str:
    observers = [callback for callback in cast(Any, trainer).callbacks if isinstance(callback, Throughput)]
    rates = observers[0].epoch_summary() if observers else None
    return "" if rates is None else f", {rates[0]:,.0f} images/s, {rates[1]:.0%} waiting for data"
