"""What a fit says before its first step of what it has found, and of what nobody has decided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from bnfree.callbacks import AdaptiveGradientClipping
from bnfree.datamodules.base import ImageDataModule
from bnfree.lightning_modules.training.messages import say

CLIPPING = (
    "The network has no batch norm and nothing clips its gradients, which all recipes do: "
    "--trainer.callbacks+=AdaptiveGradientClipping."
)
EPOCHS = (
    "trainer.max_epochs is not given: it ends after Lightning's 1000 epochs; --trainer.max_epochs=N for another number."
)


def say_notes(module: LightningModule, options: Mapping[str, Any]) -> None:
    """Says where the default is seldom meant: no gradient clipping without batch norm, and 1000 epochs.

    Args:
        module: what is trained.
        options: the Trainer's.
    """
    needs_clipping = getattr(getattr(module, "backbone", None), "wants_calibration", False)
    clips = any(isinstance(callback, AdaptiveGradientClipping) for callback in options.get("callbacks") or [])
    if needs_clipping and not clips and not options.get("gradient_clip_val"):
        say(CLIPPING)
    if options.get("max_epochs") is None and options.get("max_steps") in (None, -1) and not options.get("max_time"):
        say(EPOCHS)


class FoundData(Callback):
    """Changes nothing: says in one line how many classes and images there are."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Says it; data modules of others are not asked."""
        data: Any = getattr(trainer, "datamodule", None)
        if stage == "fit" and isinstance(data, ImageDataModule):
            say(f"Data: {data.describe()}")
