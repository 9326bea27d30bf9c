"""One training, from settings to its result: `fit`."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint

from bnfree.lightning_modules.training.command_line import TrainingCLI, run_settings
from bnfree.lightning_modules.training.run_directory import CHECKPOINTS
from bnfree.lightning_modules.training.settings import FitSettings


@dataclass(frozen=True)
class FitResult:
    """What a training has reached."""

    finished: bool
    """Whether it has come to its end; False after an interruption, from which its last checkpoint goes on."""
    run_directory: Path | None
    """Where its files are; None if it writes none."""
    best_checkpoint: Path | None
    """Checkpoint of the greatest validation accuracy; None without one."""
    last_checkpoint: Path | None
    """Checkpoint after the last epoch; None without one."""
    metrics: dict[str, float]
    """Last value of each metric, such as `val/acc`; accuracies are shares from 0 to 1."""
    test_metrics: dict[str, float]
    """What the test of the best checkpoint gave; empty without `test_after_fit`."""
    epochs: int
    """Epochs that lie behind the network, those before a resumption included."""
    steps: int
    """Optimizer steps, likewise."""
    seconds: float
    """How long this call took, the test included."""
    model: LightningModule = field(repr=False)
    """The module with the weights after the last step."""


def fit(settings: FitSettings) -> FitResult:
    """Trains a network.

    Args:
        settings: what is trained, on what, how, and where it goes.

    Returns:
        Where the run is, and what it has reached.

    Raises:
        InputError: a mistake in the settings, a config or a file.

    Example:
        >>> from bnfree.lightning_modules import FitSettings, fit
        >>> options = {"trainer.max_epochs": 1, "data.limit_train": 64, "model.backbone.width": 4}
        >>> result = fit(FitSettings("quickstart", options, run_dir=directory))  # doctest: +SKIP
        >>> result.metrics["val/acc"]  # doctest: +SKIP
        0.1
    """
    start = time.monotonic()
    command = run_settings("fit", settings)
    return _result(command, time.monotonic() - start)


def _result(command: TrainingCLI, seconds: float) -> FitResult:
    trainer = command.trainer
    checkpoints = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    best = next((c.best_model_path for c in checkpoints if c.monitor), "")
    directory = command.run_directory.absolute() if command.run_directory is not None else None
    last = directory / CHECKPOINTS / "last.ckpt" if directory is not None else None
    return FitResult(
        finished=trainer.state.status == "finished",
        run_directory=directory,
        best_checkpoint=Path(best) if best else None,
        last_checkpoint=last if last is not None and last.is_file() else None,
        metrics={name: float(value) for name, value in command.fit_metrics.items()},
        test_metrics=dict(command.test_results),
        epochs=trainer.current_epoch,
        steps=trainer.global_step,
        seconds=seconds,
        model=command.model,
    )
