"""What a Trainer gets from `bnfree` beyond what the config says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ModelSummary, ProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from bnfree.callbacks.throughput import Throughput
from bnfree.lightning_modules.training.csv_log import ContinuedCSVLogger
from bnfree.lightning_modules.training.epoch_lines import EpochLines
from bnfree.lightning_modules.training.run_directory import CHECKPOINTS, METRICS, run_directory_of


def default_loggers(directory: Path, resumed_from: str | None, first_step: int) -> list[Logger]:
    """TensorBoard and CSV, both straight into the run directory.

    Args:
        directory: the run directory.
        resumed_from: checkpoint that the run goes on from, if any; the rows of its run come first in `metrics.csv`.
        first_step: global step of that checkpoint.
    """
    earlier_run = run_directory_of(resumed_from) if resumed_from is not None else None
    earlier = earlier_run / METRICS if earlier_run is not None else None
    # A resumed run hides what TensorBoard has from beyond the checkpoint.
    purge: dict[str, Any] = {"purge_step": first_step} if first_step else {}
    return [
        TensorBoardLogger(directory, name="", version="", default_hp_metric=False, **purge),
        ContinuedCSVLogger(directory, earlier, first_step),
    ]


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
    if not _has(callbacks, Throughput):
        callbacks.append(Throughput())
    if options.get("enable_progress_bar") is None and not _has(callbacks, ProgressBar):
        options["enable_progress_bar"] = sys.stdout.isatty()
        callbacks += [] if sys.stdout.isatty() else [EpochLines()]
    if options.get("enable_progress_bar") and not _has(callbacks, ProgressBar):
        callbacks.append(TQDMProgressBar())
    if options.get("enable_model_summary") is not False and not _has(callbacks, ModelSummary):
        callbacks.append(ModelSummary())
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
