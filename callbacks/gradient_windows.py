"""Keeping the signs' gradient windows as wide as the signal; what is done is `bnfree.gradient_windows`."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from bnfree.callbacks.networks import network_to_call
from bnfree.callbacks.strategies import refuse_sharded_parameters
from bnfree.errors import InputError
from bnfree.gradient_windows import check_width, has_gradient_windows, measure_signal_widths, rescale_gradient_windows


class GradientWindows(Callback):
    """Changes training: gives the signs of a BN-free network back the width of their gradient windows, epoch by epoch.

    Before an epoch's first step, in one additional forward pass on its first batch (of the first process, where there
    are several). The function that the network computes stays the same, see `bnfree.gradient_windows`. In the first
    epoch only where the weights are those of another training (`init_from`): calibration sees to fresh ones. A network
    without beta, as the batch-norm twin, stays as it is, and so does one with the public code's rules (`reference`).

    Args:
        every_n_epochs: epochs between two times.
        width: standard deviation to bring the inputs of the signs to.

    Raises:
        InputError: an argument out of range; at the start of a run also parameters split among processes (FSDP, model
            parallelism, DeepSpeed); later a batch that does not begin with images.

    Example:
        >>> trainer = Trainer(callbacks=[GradientWindows()], logger=False)
    """

    def __init__(self, every_n_epochs: int = 1, width: float = 1.0) -> None:
        if every_n_epochs < 1:
            raise InputError(f"every_n_epochs={every_n_epochs} must be at least 1.")
        check_width(width)
        self.every_n_epochs, self.width = every_n_epochs, width
        self._idle = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses parameters that no process has as a whole; says so where no window can be rescaled."""
        if stage == "fit":
            refuse_sharded_parameters(trainer, "GradientWindows")
            network = network_to_call(pl_module, "GradientWindows", itself=True)
            published = has_gradient_windows(network) and not getattr(network, "wants_calibration", True)
            self._idle = published or not has_gradient_windows(network)
            if self._idle:
                why = "follows the public code (reference)" if published else "has no residual unit with a beta"
                rank_zero_info(f"GradientWindows changes nothing: the network {why}.")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Rescales before an epoch's first batch."""
        epoch = trainer.current_epoch
        fresh = epoch == 0 and getattr(pl_module, "init_from", None) is None
        if self._idle or batch_idx or fresh or epoch % self.every_n_epochs:
            return
        images = batch[0] if isinstance(batch, list | tuple) and len(batch) else batch
        if not isinstance(images, Tensor):
            raise InputError(
                f"batch={type(batch).__name__} does not begin with images, which GradientWindows measures."
            )
        network = network_to_call(pl_module, "GradientWindows", itself=True)
        training = network.training
        network.eval()
        widths = measure_signal_widths(network, images)
        network.train(training)
        # Every process has other images; they must go on with the same constants.
        rescale_gradient_windows(network, trainer.strategy.broadcast(widths, src=0), self.width)
