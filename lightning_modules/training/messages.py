"""What the command says."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from bnfree.lightning_modules.training.run_directory import CHECKPOINTS, METRICS


@rank_zero_only
def say(line: str) -> None:
    """Prints a line, in the first of several processes only."""
    print(line, flush=True)


def result_line(name: str, value: float) -> str:
    """A metric of an evaluation, accuracies in percent.

    Example:
        >>> result_line("test/acc", 0.93612)
        'test/acc: 93.61 %'
    """
    is_share = name.rpartition("/")[2] in ("acc", "acc5")
    return f"{name}: {100 * value:.2f} %" if is_share else f"{name}: {value:.4f}"


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
