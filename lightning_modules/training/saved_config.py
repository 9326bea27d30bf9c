"""The config of a run, saved when its training starts."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from bnfree.lightning_modules.training.run_directory import config_to_write


class SavedConfig(Callback):
    """Only observes: writes the run's config once training starts, beside an earlier one and never over it.

    Args:
        text: the config in YAML.
        directory: the run directory.
    """

    def __init__(self, text: str, directory: Path) -> None:
        self.text, self.directory = text, directory

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the file in the first process."""
        if trainer.is_global_zero:
            config_to_write(self.directory).write_text(self.text)
