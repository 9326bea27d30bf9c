"""The callbacks that a Trainer gets from `bnfree` beyond what the config says."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ModelSummary, ProgressBar
from torch.nn import UninitializedParameter
from tqdm import tqdm  # type: ignore[import-untyped]

from bnfree.callbacks.collapse_check import CollapseCheck
from bnfree.callbacks.non_finite_stop import NonFiniteStop
from bnfree.callbacks.throughput import Throughput
from bnfree.callbacks.training_bar import TrainingBar
from bnfree.files import whole_file
from bnfree.lightning_modules.training.messages import say
from bnfree.lightning_modules.training.run_directory import CHECKPOINTS, FINISHED, config_to_write


def default_callbacks(options: dict[str, Any], always_on: list[Callback], directory: Path | None) -> list[Callback]:
    """The user's callbacks and the ones that are always on.

    The bar and the summary are named because Lightning would choose them by what else is installed.

    Args:
        options: the Trainer's options; whether there is a bar is filled in, by whether there is a terminal.
        always_on: callbacks with sections of their own in the config.
        directory: the run directory.
    """
    callbacks: list[Callback] = list(options.get("callbacks") or [])
    if options.get("barebones"):
        return callbacks
    if not _has(callbacks, NonFiniteStop):
        callbacks.append(NonFiniteStop())
    if not _has(callbacks, CollapseCheck):
        callbacks.append(CollapseCheck())
    if not _has(callbacks, Throughput):
        callbacks.append(Throughput())
    if options.get("enable_progress_bar") is None and not _has(callbacks, ProgressBar):
        options["enable_progress_bar"] = sys.stdout.isatty()
        callbacks.append(EpochLines())
    if options.get("enable_progress_bar") and not _has(callbacks, ProgressBar):
        callbacks.append(TrainingBar())
    if options.get("enable_model_summary") is not False and not _has(callbacks, ModelSummary):
        callbacks.append(SizeLine())
    for callback in always_on:
        if isinstance(callback, ModelCheckpoint):
            if options.get("enable_checkpointing") is False or callback.save_top_k == 0:
                continue
            if callback.dirpath is None and directory is not None:
                callback.dirpath = str((directory / CHECKPOINTS).absolute())
        elif options.get("logger") is False:
            # The only other one is the learning-rate monitor, which refuses to run without a logger.
            continue
        callbacks.append(callback)
    return callbacks


def _has(callbacks: list[Callback], kind: type) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)


class SizeLine(ModelSummary):
    """Only observes: says how many parameters the network has, in one line.

    Lightning's table has a row for each loss and metric, and a column of operations that are not counted.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says it."""
        network = getattr(pl_module, "backbone", pl_module)
        numbers = [p.numel() for p in pl_module.parameters() if not isinstance(p, UninitializedParameter)]
        say(f"{type(network).__name__}: {sum(numbers):,} parameters.")


class EpochLines(Callback):
    """Only observes: prints one line for each epoch, which also stays where a progress bar is wiped out."""

    def __init__(self) -> None:
        self._start = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock, also of an epoch that is resumed in its middle."""
        self._start = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock of an epoch."""
        self._start = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the line, with the metrics of training and validation."""
        # In all processes: whoever asks first adds up what all have logged, and waits for the others.
        metrics = trainer.callback_metrics
        if not trainer.is_global_zero:
            return
        names = sorted(name for name in metrics if name.startswith(("train/", "val/")))
        shown = "  ".join(f"{name} {float(metrics[name]):.4f}" for name in names)
        total = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
        seconds = time.monotonic() - self._start
        line = f"epoch {trainer.current_epoch + 1}{total}  {shown}  ({seconds:.1f} s{_throughput(trainer)})"
        if sys.stdout.isatty():
            # Above the bar, which would else end in the middle of the line.
            tqdm.write(line)
        else:
            print(line, flush=True)


def _throughput(trainer: Trainer) -> str:
    observers = [callback for callback in cast(Any, trainer).callbacks if isinstance(callback, Throughput)]
    rates = observers[0].epoch_summary() if observers else None
    return "" if rates is None else f", {rates[0]:,.0f} images/s, {rates[1]:.0%} waiting for data"


class SavedConfig(Callback):
    """Only observes: writes the run's config once training starts, beside an earlier one and never over it.

    Args:
        text: the config in YAML.
        directory: the run directory.
    """

    def __init__(self, text: str, directory: Path) -> None:
        self.text, self.directory = text, directory
        self._started = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the file in the first process."""
        self._started = True
        if trainer.is_global_zero:
            (self.directory / FINISHED).unlink(missing_ok=True)
            with whole_file(config_to_write(self.directory)) as unfinished:
                unfinished.write_text(self.text)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Marks a run that nothing has stopped; one with nothing left to train leaves no trace."""
        if self._started and trainer.is_global_zero and self.directory.is_dir():
            (self.directory / FINISHED).touch()
