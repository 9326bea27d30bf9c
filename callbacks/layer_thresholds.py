"""LAPP as a callback; thresholds and their gradients are `bnfree.compression.layer_thresholds`."""

from __future__ import annotations

from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer

from bnfree.callbacks.row_cutting import cut_rows, layers_to_cut, say_nothing_was_cut
from bnfree.compression.layer_thresholds import LayerThresholds as Thresholds
from bnfree.compression.layer_thresholds import annealed
from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError
from bnfree.layer_calls import record_calls
from bnfree.state_dicts import backbone_of, uncompiled


class LayerThresholds(Callback):
    """Changes training: learns in each layer a threshold below which rows are off, until few operations are left.

    In the first part of a run every binary convolution of a residual unit has one learned threshold on the |gain| of
    its rows. The forward pass is hard (rows below it are off), gradients are those of a sigmoid of temperature T, and a
    term of the loss asks for the target. Then the rows that are off are cut for good, see
    `bnfree.compression.remove_rows`: checkpoints load without this callback, a run goes on exactly, before the cut and
    after it, and `best.ckpt` is chosen anew. What is still missing at the cut is taken from the rows that lie nearest
    to their thresholds, and said. Validation and checkpoints before the cut see the network as thresholds have it.

    Logs `layer_thresholds/operations` at the end of each epoch: the share of operations that is left.

    Source: see `bnfree.compression.layer_thresholds`.

    Args:
        target: share of the operations of the convolutions that can lose rows that is to be left.
        epochs: after how many of them rows are cut; null: after half of the run.
        strength: of the term.
        temperature: T at the start, in units of the mean |gain|.
        end_temperature: T at the cut.
        speed: how far a threshold can move until the cut, at most about, in units of the mean |gain|.

    Raises:
        InputError: a value out of range; at the start of a run also a cut that leaves nothing to fine-tune in, a
            network without rows that can go or without gains, or what does not go with a cut.
    """

    def __init__(
        self,
        target: float = 0.5,
        epochs: int | None = None,
        strength: float = 1.0,
        temperature: float = 0.5,
        end_temperature: float = 0.05,
        speed: float = 3.0,
    ) -> None:
        if not 0 < target < 1:
            raise InputError(f"target={target} must be greater than 0 and less than 1.")
        if epochs is not None and epochs < 1:
            raise InputError(f"epochs={epochs} must be at least 1.")
        for name, value in (("strength", strength), ("temperature", temperature), ("speed", speed)):
            if not 0 < value < float("inf"):
                raise InputError(f"{name}={value} must be a finite number greater than 0.")
        if not 0 < end_temperature <= temperature:
            raise InputError(f"end_temperature={end_temperature} must be greater than 0 and at most temperature.")
        self.target, self.epochs, self.strength, self.speed = target, epochs, strength, speed
        self.temperature, self.end_temperature = temperature, end_temperature
        self._cut = False
        self._restored: dict[str, Any] | None = None
        self._forget()

    def _forget(self) -> None:
        self._layers: dict[str, BinaryConv2d] = {}
        self._thresholds: Thresholds | None = None
        self._costs: dict[str, float] = {}
        self._unit = 1.0
        self._steps, self._step = 1.0, -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses what has no rows to cut."""
        if stage != "fit":
            return
        self._forget()
        self._cut, self._restored = False, None
        self._layers = layers_to_cut(trainer, pl_module, "LayerThresholds")
        epochs = trainer.max_epochs
        if epochs is None or epochs < 1:
            raise InputError(f"trainer.max_epochs={epochs} gives LayerThresholds no end; set it to a positive number.")
        if self.epochs is not None and self.epochs >= epochs:
            raise InputError(
                f"epochs={self.epochs} of LayerThresholds leaves none of the {epochs} epochs of the run to fine-tune "
                "in; raise trainer.max_epochs."
            )

    def _cut_at(self, trainer: Trainer) -> int:
        return self.epochs or max(1, int(trainer.max_epochs or 1) // 2)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begins with the first batch, which says how large images are; switches rows off."""
        if self._cut or not self._layers:
            return
        self._step = trainer.global_step
        if self._thresholds is None:
            images: Tensor = batch[0] if isinstance(batch, list | tuple) else batch
            self._costs = _row_operations(backbone_of(pl_module), self._layers, images)
            gains = [layer.gain.detach().abs().mean() for layer in self._layers.values() if layer.gain is not None]
            self._unit = float(sum(gains)) / len(gains)
            self._begin(trainer)
        cast(Thresholds, self._thresholds).hide()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes up the thresholds of a run that has been interrupted."""
        state, self._restored = self._restored, None
        if state is not None:
            self._costs, self._unit = state["row_operations"], state["unit"]
            self._begin(trainer).load_state_dict(state["thresholds"])

    def _begin(self, trainer: Trainer) -> Thresholds:
        share = self._cut_at(trainer) / max(1, trainer.max_epochs or 1)
        self._steps = max(1.0, share * float(trainer.estimated_stepping_batches))
        rate = self.speed * self._unit / self._steps
        self._thresholds = Thresholds(self._layers, self._costs, self.target, rate)
        return self._thresholds

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the gains back, for clipping and the optimizer to see."""
        if self._thresholds is not None:
            self._thresholds.show()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Gives gains and thresholds their gradients."""
        if self._thresholds is not None:
            progress = trainer.global_step / self._steps
            temperature = self._unit * annealed(self.temperature, self.end_temperature, progress)
            self._thresholds.backward(temperature, self.strength)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the thresholds after a step, and switches rows off for whoever looks at the network next."""
        if self._thresholds is None:
            return
        self._thresholds.show()
        if trainer.global_step != self._step:
            self._thresholds.step()
        self._thresholds.hide()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cuts."""
        thresholds = self._thresholds
        if thresholds is None or trainer.current_epoch < self._cut_at(trainer):
            return
        met = thresholds.met
        late = thresholds.meet()
        if not met:
            rank_zero_info(f"LayerThresholds had not met target={self.target}: {late} more rows go.")
        rows = thresholds.rows_off()
        thresholds.show()
        self._thresholds, self._cut = None, True
        cut_rows(trainer, pl_module, rows, "LayerThresholds")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs how much is left."""
        if self._thresholds is not None:
            share = self._thresholds.operations()
            pl_module.log("layer_thresholds/operations", share, on_step=False, on_epoch=True, sync_dist=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says so where the end came before the cut."""
        if self._layers and not self._cut:
            say_nothing_was_cut(trainer, self._cut_at(trainer), "LayerThresholds")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lets go of the network."""
        self._forget()

    def state_dict(self) -> dict[str, Any]:
        """Thresholds and the gains of rows that are off, or whether rows are cut."""
        thresholds = None if self._thresholds is None else self._thresholds.state_dict()
        known = {"row_operations": dict(self._costs), "unit": self._unit}
        return {"cut": self._cut, "thresholds": thresholds, **known}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up a training that has been interrupted."""
        self._cut = bool(state_dict["cut"])
        self._restored = state_dict if state_dict["thresholds"] is not None else None


def _row_operations(network: nn.Module, layers: dict[str, BinaryConv2d], images: Tensor) -> dict[str, float]:
    """Multiply-accumulates of one row of each layer, for an image like those of a batch (N, C, H, W)."""
    _, channels, height, width = images.shape
    calls = record_calls(uncompiled(network), {**layers}, (channels, height, width))
    return {name: sum(c.macs for c in calls[name]) / max(1, len(layer.weight)) for name, layer in layers.items()}
