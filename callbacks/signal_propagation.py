"""A record of the signal in front of every sign as a callback; what is measured is `bnfree.diagnostics`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from bnfree.callbacks.networks import network_to_call
from bnfree.callbacks.run_files import read_csv, run_directory, write_csv
from bnfree.callbacks.strategies import refuse_sharded_parameters
from bnfree.diagnostics.figures import plot_signals, render
from bnfree.diagnostics.signals import UnitSignal, measure_signals
from bnfree.errors import InputError
from bnfree.state_dicts import backbone_of

HEADER = (
    "epoch",
    "unit",
    "mean",
    "drift",
    "variance",
    "expected_variance",
    "imbalance",
    "worst_imbalance",
    "window",
)


class SignalPropagation(Callback):
    """Only observes: records mean, variance, balance of signs and gradient window in front of every sign.

    Measured in one additional forward pass on the first validation batch of an epoch (that is, after its training); in
    runs without validation on the first training batch (before the epoch's training). The network runs in eval mode,
    and its mode comes back.

    Written to `signal_propagation.csv` in the run directory, one row for each epoch and residual unit: `mean` and
    `drift` (|mean| / standard deviation) and `variance` as means over channels, `expected_variance` (1 / beta^2, empty
    without beta), `imbalance` and `worst_imbalance` (|E sign|, 0 balanced, 1 all of one sign), `window` (share of
    values with a gradient). A resumed run replaces the rows of the epochs that it runs again. TensorBoard gets the same
    as a figure, `signal_propagation`.

    Args:
        every_n_epochs: epochs between two measurements.
        max_images: images of the batch to measure on.
        filename: name of the CSV file.

    Raises:
        InputError: an argument out of range; at the start of a run also parameters split among processes (FSDP, model
            parallelism, DeepSpeed), a network that cannot be called, one without residual units, or a batch without
            images.

    Example:
        >>> trainer = Trainer(callbacks=[SignalPropagation(every_n_epochs=5)], logger=False)
    """

    def __init__(
        self, every_n_epochs: int = 1, max_images: int = 128, filename: str = "signal_propagation.csv"
    ) -> None:
        if every_n_epochs < 1:
            raise InputError(f"every_n_epochs={every_n_epochs} must be at least 1.")
        if max_images < 1:
            raise InputError(f"max_images={max_images} must be at least 1.")
        self.every_n_epochs, self.max_images, self.filename = every_n_epochs, max_images, filename
        self._directory: Path | None = None
        self._last_epoch = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses strategies that leave no process with a whole network."""
        if stage == "fit":
            refuse_sharded_parameters(trainer, "SignalPropagation")
            network_to_call(pl_module, "SignalPropagation", itself=True)
            self._last_epoch = -1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Asks for the run directory, which all processes must do together."""
        self._directory = run_directory(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Measures on the first batch of the epoch's validation."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and batch_idx == 0 and dataloader_idx == 0:
            self._measure(trainer, pl_module, batch)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Measures on the first training batch where there is no validation."""
        if batch_idx == 0 and not trainer.enable_validation:
            self._measure(trainer, pl_module, batch)

    def _measure(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        epoch = trainer.current_epoch
        if not trainer.is_global_zero or epoch % self.every_n_epochs or epoch == self._last_epoch:
            return
        self._last_epoch = epoch
        images = _images(batch)[: self.max_images]
        signals = measure_signals(backbone_of(pl_module), images)
        write_csv(self._path(trainer), HEADER, merge(read_csv(self._path(trainer), HEADER), epoch, signals))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                figure = plot_signals(signals, f"Signal in front of each sign, epoch {epoch}")
                pixels = render(figure)
                logger.experiment.add_image("signal_propagation", pixels, trainer.global_step, dataformats="HWC")

    def _path(self, trainer: Trainer) -> Path:
        return (self._directory or Path(trainer.default_root_dir)) / self.filename


def merge(rows: list[list[str]], epoch: int, signals: list[UnitSignal]) -> list[list[str]]:
    """Rows of the CSV file with those of `epoch` added, and without what an interrupted run left of later ones."""
    kept = [row for row in rows if row[0].isdigit() and int(row[0]) < epoch]
    return kept + [[str(epoch), s.name, *(_number(getattr(s, column)) for column in HEADER[2:])] for s in signals]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _images(batch: Any) -> Tensor:
    images = batch[0] if isinstance(batch, (list, tuple)) and batch else batch
    if not isinstance(images, Tensor):
        raise InputError(
            f"batch={type(batch).__name__} holds no images that SignalPropagation can find; let the loader give "
            "(images, labels)."
        )
    return images
