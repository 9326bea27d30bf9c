"""Which classes are taken for which, over the test images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bnfree.callbacks.run_files import as_text, run_directory, write_csv

CONFUSION = "test_confusion.csv"
CLASSES = "test_classes.csv"


def count_pairs(labels: Tensor, predicted: Tensor, num_classes: int) -> Tensor:
    """How many images of each class were taken for each class.

    Args:
        labels: (N,), int64, from 0 to num_classes - 1.
        predicted: (N,), likewise.
        num_classes: C.

    Returns:
        (C, C), int64; rows are the labels.

    Example:
        >>> count_pairs(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 2).tolist()
        [[1, 1], [0, 1]]
    """
    pairs = labels.long() * num_classes + predicted.long()
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


class ConfusionMatrix(Callback):
    """Only observes: counts during a test which classes are taken for which, and writes two CSV files.

    In the run directory: `test_confusion.csv`, a row for each class and a column for each that its images were taken
    for, and `test_classes.csv` with `class,images,correct,accuracy`. On by default in the test after a fit; `bnfree
    report` draws them.

    Needs batches of (images, labels) and a module whose `backbone` gives logits (N, num_classes); others are left out.
    """

    def __init__(self) -> None:
        self._logits: Tensor | None = None
        self._counts: Tensor | None = None
        self._hook: RemovableHandle | None = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts to count."""
        self._counts = self._logits = None
        backbone = getattr(pl_module, "backbone", None)
        if isinstance(backbone, nn.Module):
            self._hook = backbone.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._logits = output.detach() if isinstance(output, Tensor) and output.ndim == 2 else None

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts a batch."""
        logits, self._logits = self._logits, None
        labels = batch[1] if isinstance(batch, list | tuple) and len(batch) == 2 else None
        if logits is None or not isinstance(labels, Tensor) or labels.shape != logits.shape[:1]:
            return
        counts = count_pairs(labels, logits.argmax(1), logits.shape[1])
        self._counts = counts if self._counts is None else self._counts + counts

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds up what all processes have counted, and writes the files."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        if self._counts is None:
            return
        counts = trainer.strategy.reduce(self._counts, reduce_op="sum")
        # All processes together: the first one would wait for the others.
        directory = run_directory(trainer)
        if trainer.is_global_zero and not trainer.sanity_checking:
            names = getattr(getattr(trainer, "datamodule", None), "class_names", None)
            write_confusion(directory, torch.as_tensor(counts).cpu(), names)


def write_confusion(directory: Path, counts: Tensor, names: Sequence[str] | None = None) -> None:
    """Writes both files.

    Args:
        directory: where they go.
        counts: (C, C), rows are the labels.
        names: of the classes; None: their numbers.
    """
    labels = [as_text(str(name)) for name in (names if names is not None else range(len(counts)))]
    rows = counts.tolist()
    write_csv(
        directory / CONFUSION, ("class", *labels), ((label, *row) for label, row in zip(labels, rows, strict=True))
    )
    classes = []
    for number, (label, row) in enumerate(zip(labels, rows, strict=True)):
        share = f"{row[number] / sum(row):.6f}" if sum(row) else ""
        classes.append((label, sum(row), row[number], share))
    write_csv(directory / CLASSES, ("class", "images", "correct", "accuracy"), classes)
