"""What a LightningModule of one's own leaves out that this project's modules do: said in a line, and trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from bnfree.calibration import needs_calibration
from bnfree.lightning_modules.modules.image_classifier import ImageClassifier
from bnfree.lightning_modules.training.config.parser import BEST_CHECKPOINT
from bnfree.lightning_modules.training.messages import say

CHOICE = "choose another with --best_checkpoint.monitor=NAME --best_checkpoint.mode=min or max"


class LoggedMonitor(Callback):
    """Changes what is kept, not the training: the best checkpoint follows what a module logs in place of `val/acc`.

    Lightning would end the training after its first epoch. A monitor that the user has chosen is left alone.

    Args:
        best: the callback of the best checkpoint.
        states: of the callbacks in the checkpoint that a run goes on from, which has settled it before.
    """

    def __init__(self, best: ModelCheckpoint, states: Mapping[str, Any]) -> None:
        self.best = best
        self._settled = best.monitor != BEST_CHECKPOINT["monitor"]
        monitors = [s["monitor"] for s in states.values() if isinstance(s, dict) and s.get("monitor")]
        if not self._settled and monitors and best.monitor not in monitors:
            self._follow(*_choose(monitors))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at what the first validation has logged."""
        if self._settled or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._settled = True
        if self.best.monitor in trainer.callback_metrics:
            return
        name, mode = _choose(trainer.callback_metrics)
        if name is None:
            say(f"{type(pl_module).__name__} logs no val/acc, so there is no best checkpoint, only the last; {CHOICE}.")
        else:
            greatest = "greatest" if mode == "max" else "least"
            say(
                f"{type(pl_module).__name__} logs no val/acc: the best checkpoint is that of the {greatest} {name}; "
                f"{CHOICE}."
            )
        self._follow(name, mode)

    def _follow(self, name: str | None, mode: str) -> None:
        self._settled = True
        self.best.monitor, self.best.mode = name, mode
        self.best.kth_value = torch.tensor(float("inf") if mode == "min" else -float("inf"))
        if name is None:
            self.best.save_top_k = 0


def _choose(metrics: Iterable[str]) -> tuple[str | None, str]:
    """The metric that says most about validation, and whether it is to be great or small."""
    names = sorted(name for name in metrics if "val" in name.lower())
    for word, mode in (("acc", "max"), ("loss", "min"), ("error", "min")):
        for name in names:
            if word in name.lower():
                return name, mode
    return None, "min"


class CalibrationNotice(Callback):
    """Only observes: says that a BN-free network starts without calibration, where nobody has asked for that."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the network, after callbacks that calibrate have."""
        # This project's own module calibrates, or was told not to.
        own = isinstance(pl_module, ImageClassifier)
        if trainer.global_step == 0 and not own and needs_calibration(pl_module):
            say(
                f"The BN-free network in {type(pl_module).__name__} is not calibrated: add "
                "--trainer.callbacks+=bnfree.callbacks.Calibration to measure its constants on training images."
            )
