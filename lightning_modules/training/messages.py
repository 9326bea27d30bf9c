"""What the command says, and what of its libraries' messages it leaves out."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from bnfree.lightning_modules.training.run_directory import CHECKPOINTS, METRICS


@rank_zero_only
def say(line: str) -> None:
    """Prints a line, in the first of several processes only."""
    print(line, flush=True)


def say_where_things_are(directory: Path, best: ModelCheckpoint | None) -> None:
    """Prints the run directory and what is in it.

    Args:
        directory: the run directory.
        best: the callback that keeps the best checkpoint, if there is one.
    """
    say(f"Run directory: {directory}")
    if best is not None and best.best_model_path and best.best_model_score is not None:
        say(f"Best checkpoint: {_short(best.best_model_path)} ({best.monitor} {float(best.best_model_score):.4f})")
    last, metrics = directory / CHECKPOINTS / "last.ckpt", directory / METRICS
    if last.is_file():
        say(f"Last checkpoint: {last}")
    if metrics.is_file():
        say(f"Metrics: {metrics}, or tensorboard --logdir {directory}")


def _short(path: str) -> str:
    file = Path(path)
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else path


def quieten(subcommand: str) -> None:
    """Leaves out Lightning's advertisements and jsonargparse's warnings about the calls that Lightning makes.

    Args:
        subcommand: what is going to run.
    """
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_worth_reading)
    # The run directory is the command's own, and resuming into it is what the user has asked for.
    if subcommand != "fit":
        # It names the checkpoint callbacks, which have nothing to do in an evaluation.
        warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks")
        # Predictions carry the index of their image themselves.
        warnings.filterwarnings("ignore", message="Couldn't infer the batch indices")
    warnings.filterwarnings("ignore", message="The dirpath has changed from")
    # Its size in MB is counted as if in 32 bits, which the weights are in mixed precision.
    warnings.filterwarnings("ignore", message="Precision .*-mixed is not supported by the model summary")
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")


def _is_worth_reading(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return "Tip:" not in message and not message.startswith("Trainer already configured with model summary")
