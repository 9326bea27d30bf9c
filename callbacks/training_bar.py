"""The progress bar of the `bnfree` command, which asks a GPU for numbers only when it is drawn."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

STEPS_ON_A_GPU = 20


class TrainingBar(TQDMProgressBar):
    """Only observes: Lightning's bar, with what the module and the callbacks have in `bar_items`.

    What is logged with `prog_bar=True` Lightning reads in every step, drawn or not, bar or none: the process waits for
    the GPU to finish a step before it prepares the next one. This bar reads the loss of a step and the throughput when
    it is drawn.

    Args:
        refresh_rate: drawn every so many steps; None: every step on a CPU, every 20 elsewhere.

    Example:
        >>> trainer = Trainer(callbacks=[TrainingBar()], logger=False)
    """

    takes_bar_items = True

    def __init__(self, refresh_rate: int | None = None) -> None:
        super().__init__(1 if refresh_rate is None else refresh_rate)
        self._chosen = refresh_rate is not None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Chooses how often it is drawn."""
        super().setup(trainer, pl_module, stage)
        if not self._chosen:
            self._refresh_rate = 1 if trainer.strategy.root_device.type == "cpu" else STEPS_ON_A_GPU

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What stands behind the bar: numbers by name."""
        metrics: dict[str, Any] = dict(super().get_metrics(trainer, pl_module))
        if trainer.training:
            for source in (pl_module, *trainer.callbacks):  # type: ignore[attr-defined]
                metrics |= {name: float(value) for name, value in getattr(source, "bar_items", {}).items()}
        return metrics
