"""Calibration as a callback; what is measured is `bnfree.calibration`."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from bnfree.calibration import calibrate, first_images, is_calibrated
from bnfree.callbacks.networks import network_to_call
from bnfree.errors import InputError


class Calibration(Callback):
    """Changes training: calibrates the BN-free network of any LightningModule before the first step of a fresh run.

    `ImageClassifier` does so itself; this is for modules of your own, whose network lies in one attribute, such as
    `self.net`. A network that is calibrated or trained already keeps its constants, and so does a run that goes on. All
    processes train with the constants of the first. The images are those of the data module's
    `calibration_images(count)` where it has that method, and otherwise the first of the training loader, whose batches
    must be (images, ...).

    Args:
        images: number of training images to calibrate on.
        full: also the shifts of RPReLU and the gains, see `bnfree.calibration.calibrate`.
        recalibrate: calibrate also what is calibrated or trained already.

    Raises:
        InputError: a value out of range; at the start of a run also a network without anything to calibrate, one that
            cannot be called with images, or batches without images.

    Example:
        >>> trainer = Trainer(callbacks=[Calibration(images=512)], logger=False)
    """

    def __init__(self, images: int = 256, full: bool = True, recalibrate: bool = False) -> None:
        if images < 1:
            raise InputError(f"images={images} must be at least 1.")
        self.images, self.full, self.recalibrate = images, full, recalibrate

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a network that cannot be called."""
        if stage == "fit":
            network_to_call(pl_module, "Calibration", itself=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Calibrates."""
        network = network_to_call(pl_module, "Calibration", itself=True)
        if trainer.global_step > 0 or not getattr(network, "wants_calibration", True):
            return
        if not self.recalibrate and is_calibrated(network):
            rank_zero_info("Calibrated or trained already: beta, shifts and gains stay as they are.")
            return
        like = next(network.parameters())
        data: Any = getattr(trainer, "datamodule", None)
        if hasattr(data, "calibration_images"):
            images = data.calibration_images(self.images)
        else:
            images = first_images(trainer.train_dataloader or (), self.images)
        report = calibrate(network, images.to(like.device, like.dtype), full=self.full)
        if trainer.world_size > 1:
            # Processes may round differently; training must start from the same constants everywhere.
            state = {key: value.cpu() for key, value in network.state_dict().items()}
            network.load_state_dict(trainer.strategy.broadcast(state, src=0))
        betas = [unit.beta for unit in report]
        rank_zero_info(
            f"Calibrated {len(report)} residual units on {len(images)} training images: beta {min(betas):.2f} to "
            f"{max(betas):.2f}."
        )
