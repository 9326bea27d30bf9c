"""One evaluation of a checkpoint, from settings to its result: `evaluate`."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from lightning.pytorch import LightningModule

from bnfree.callbacks import PredictionWriter
from bnfree.errors import InputError
from bnfree.lightning_modules.training.command_line import run_settings
from bnfree.lightning_modules.training.settings import PARTS, EvaluateSettings
from bnfree.names import did_you_mean


@dataclass(frozen=True)
class EvaluateResult:
    """What an evaluation has given."""

    metrics: dict[str, float]
    """Each metric, such as `test/acc`; accuracies are shares from 0 to 1. Empty after `predict`."""
    predictions: Path | None
    """CSV file with a row for each image, see `bnfree.callbacks.PredictionWriter`; None unless predicted."""
    run_directory: Path | None
    """Where files of the evaluation go; None if there are none."""
    seconds: float
    """How long it took."""
    model: LightningModule = field(repr=False)
    """The module with the checkpoint's weights."""


def evaluate(settings: EvaluateSettings) -> EvaluateResult:
    """Evaluates a checkpoint on the validation part or the test set, or predicts the classes of the test images.

    Packed files, which need no training framework, are `bnfree.packing`'s.

    Args:
        settings: which checkpoint, on which part, with which options.

    Returns:
        The metrics, or where the predictions are.

    Raises:
        InputError: a mistake in the settings, a config or a file.

    Example:
        >>> from bnfree.lightning_modules import EvaluateSettings, evaluate
        >>> evaluate(EvaluateSettings(ckpt_path="RUN/checkpoints/best.ckpt")).metrics["test/acc"]  # doctest: +SKIP
        0.9361
    """
    if settings.part not in PARTS:
        remedy = did_you_mean(settings.part, PARTS) or f"choose from {', '.join(PARTS)}."
        raise InputError(f"part={settings.part!r} is not known; {remedy}")
    start = time.monotonic()
    command = run_settings(settings.part, settings)
    trainer = command.trainer
    directory = command.run_directory.absolute() if command.run_directory is not None else None
    predicts = settings.part == "predict"
    writers = [c for c in getattr(trainer, "callbacks", []) if isinstance(c, PredictionWriter)] if predicts else []
    return EvaluateResult(
        metrics={} if predicts else {name: float(value) for name, value in trainer.callback_metrics.items()},
        predictions=writers[0].path(trainer).absolute() if writers else None,
        run_directory=directory,
        seconds=time.monotonic() - start,
        model=command.model,
    )
