"""Keeping the signs' gradient windows as wide as the signal; what is done is `bnfree.gradient_windows`."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from bnfree.callbacks.strategies import refuse_sharded_parameters
from bnfree.errors import InputError
from bnfree.gradient_windows import rescale_gradient_windows
from bnfree.state_dicts import backbone_of


class GradientWindows(Callback):
    """Changes training: before an epoch, gives the signs of a BN-free network back the width of their gradient windows.

    The function that the network computes stays the same; see `bnfree.gradient_windows`. Not before the first epoch,
    for which calibration sees to it. The images are those that calibration takes, in all epochs the same. A run that is
    resumed amid an epoch has done it already.

    Args:
        every_n_epochs: epochs between two times.
        width: standard deviation to bring the inputs of the signs to.
        images: number of training images to measure on.

    Raises:
        InputError: an argument out of range; at the start of a run also parameters split among processes (FSDP, model
            parallelism, DeepSpeed), or a network without units to rescale.

    Example:
        >>> trainer = Trainer(callbacks=[GradientWindows()], logger=False)
    """

    def __init__(self, every_n_epochs: int = 1, width: float = 1.0, images: int = 256) -> None:
        if every_n_epochs < 1:
            raise InputError(f"every_n_epochs={every_n_epochs} must be at least 1.")
        if not 0 < width < float("inf"):
            raise InputError(f"width={width} must be a finite number greater than 0.")
        if images < 1:
            raise InputError(f"images={images} must be at least 1.")
        self.every_n_epochs, self.width, self.images = every_n_epochs, width, images
        self._kept: Tensor | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses strategies that leave no process with a whole network."""
        if stage == "fit":
            refuse_sharded_parameters(trainer, "GradientWindows")
            self._kept = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Rescales before an epoch's first batch, on the same images in every epoch."""
        epoch = trainer.current_epoch
        if batch_idx or epoch == 0 or epoch % self.every_n_epochs:
            return
        network = backbone_of(pl_module)
        like = next(network.parameters())
        if self._kept is None:
            self._kept = pl_module._calibration_images().to(like.device, like.dtype)
        training = network.training
        network.eval()
        rescale_gradient_windows(network, self._kept, self.width)
        network.train(training)
        if trainer.world_size > 1:
            # Processes may round differently; training goes on from the same constants everywhere.
            state = {key: value.cpu() for key, value in network.state_dict().items()}
            network.load_state_dict(trainer.strategy.broadcast(state, src=0))
