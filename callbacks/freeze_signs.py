"""Signs that stay as they are at the end of a training, for all else to settle on."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from bnfree.callbacks.strategies import refuse_sharded_parameters
from bnfree.convolution import BinaryConv2d
from bnfree.diagnostics.signs import convolutions
from bnfree.errors import InputError
from bnfree.state_dicts import backbone_of


class FreezeSigns(Callback):
    """Changes training: in the last part of a run the latent weights of binary convolutions are not trained.

    Gains, shifts, slopes, stem, real shortcuts and classifier go on, and adapt to a binary function that no longer
    changes. A run that goes on freezes at the same step. Our own, after the low flip rates that others ask for at the
    end of a training.

    Args:
        share: of the run's optimizer steps, greater than 0 and at most 1.

    Raises:
        InputError: a value out of range; at the start of a training also parameters split among processes (FSDP, model
            parallelism, DeepSpeed), no binary weights, or a run without an end.
    """

    def __init__(self, share: float = 0.1) -> None:
        if not 0 < share <= 1:
            raise InputError(f"share={share} must be greater than 0 and at most 1.")
        self.share = share
        self._layers: list[BinaryConv2d] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a network without signs of weights."""
        if stage != "fit":
            return
        refuse_sharded_parameters(trainer, "FreezeSigns")
        network = backbone_of(pl_module)
        self._layers = [layer for layer in convolutions(network).values() if layer.binary_weights]
        if not self._layers:
            raise InputError(
                f"backbone={type(network).__name__} has no binary weights, so FreezeSigns has nothing to freeze; "
                "remove the callback."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses a run without an end."""
        if not 0 < trainer.estimated_stepping_batches < float("inf"):
            raise InputError(
                f"trainer.max_epochs={trainer.max_epochs} gives FreezeSigns no end; set trainer.max_epochs or "
                "trainer.max_steps to a positive number."
            )

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Takes the gradients of latent weights away, which keeps momentum and weight decay from them as well."""
        if trainer.global_step >= (1 - self.share) * trainer.estimated_stepping_batches:
            for layer in self._layers:
                layer.weight.grad = None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lets go of the network."""
        self._layers = []
