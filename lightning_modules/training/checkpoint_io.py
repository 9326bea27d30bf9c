"""Checkpoint files that are there as a whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.plugins.io import TorchCheckpointIO


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a local checkpoint beside its place and renames it.

    Lightning writes into the system's temporary directory and moves the file. Where that is another file system, as on
    most clusters, moving is copying, and a process that is killed meanwhile leaves a truncated checkpoint in place of
    the good one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Saves a checkpoint; addresses other than local paths are left to Lightning.

        Args:
            checkpoint: what to save.
            path: where.
            storage_options: not used, as in Lightning's own.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        # Always the same name: what a killed process has left is overwritten by the next one.
        unfinished = place.with_name(f".{place.name}.unfinished")
        torch.save(checkpoint, unfinished)
        unfinished.replace(place)
