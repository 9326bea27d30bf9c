"""A schedule of sign flips in place of one of the learning rate; what steers is `bnfree.flip_control`."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from bnfree.callbacks.strategies import refuse_sharded_parameters
from bnfree.convolution import BinaryConv2d
from bnfree.diagnostics.signs import convolutions, flipped_share, weight_signs
from bnfree.errors import InputError
from bnfree.flip_control import FlipControl, wanted_share
from bnfree.state_dicts import backbone_of


class FlipSchedule(Callback):
    """Changes training: the steps of latent weights are scaled so that a wanted share of the binary weights flips.

    After each optimizer step, w <- w_before + U (w - w_before): for SGD, Adam and their like U times the learning rate,
    weight decay included. U follows the moving average of the share of signs that flipped in a step, counted as
    `WeightDynamics` counts them. Put it before `LatentSphere`. Logs `signs/flipped_in_step` (that average),
    `signs/wanted` and `signs/step_factor` (U) when the trainer logs.

    Source and deviations: see `bnfree.flip_control`.

    Args:
        rate: share of the signs that should flip in a step at the start.
        schedule: `cosine` or `linear` to 0 at the end of the run, or `constant`.
        momentum: of the moving average, from 0 to 1; the controller's time is 2 / (1 - momentum) steps.

    Raises:
        InputError: a value out of range; at the start of a training also parameters split among processes (FSDP, model
            parallelism, DeepSpeed), no binary weights that are trained, or a run without an end.
    """

    def __init__(
        self, rate: float = 5e-3, schedule: Literal["cosine", "linear", "constant"] = "cosine", momentum: float = 0.9
    ) -> None:
        if not 0 < rate < 1:
            raise InputError(f"rate={rate} must be greater than 0 and less than 1.")
        if not 0 <= momentum < 1:
            raise InputError(f"momentum={momentum} must be at least 0 and less than 1.")
        wanted_share(rate, 0, schedule)
        self.rate, self.schedule, self.momentum = rate, schedule, momentum
        self._layers: dict[str, BinaryConv2d] = {}
        self._before: dict[str, tuple[Tensor, Tensor]] = {}
        self._control: FlipControl | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a network without signs of weights."""
        if stage != "fit":
            return
        refuse_sharded_parameters(trainer, "FlipSchedule")
        network, layers = backbone_of(pl_module), convolutions(backbone_of(pl_module))
        self._layers = {n: layer for n, layer in layers.items() if layer.binary_weights and layer.weight.requires_grad}
        if not self._layers:
            raise InputError(
                f"backbone={type(network).__name__} has no binary weights that are trained, so FlipSchedule has no "
                "flips to count; set binary_weights=true or remove the callback."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses a run without an end."""
        if self.schedule != "constant" and not 0 < trainer.estimated_stepping_batches < float("inf"):
            raise InputError(
                f"trainer.max_epochs={trainer.max_epochs} gives FlipSchedule no end; set trainer.max_epochs or "
                "trainer.max_steps to a positive number, or schedule='constant'."
            )
        if self._control is None:
            self._control = FlipControl.starting(self.rate, pl_module.device)
        # What a checkpoint holds comes before the network is on its device.
        self._control = self._control.to(pl_module.device)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Remembers where the step begins."""
        self._before = {
            name: (layer.weight.detach().clone(), weight_signs(layer)) for name, layer in self._layers.items()
        }

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Scales the step, counts its flips, and sets the scale of the next one."""
        if not self._before or self._control is None:
            return
        with torch.no_grad():
            for name, (weight, _) in self._before.items():
                layer = self._layers[name]
                layer.weight.copy_(torch.lerp(weight, layer.weight, self._control.factor.to(weight.dtype)))
        share = flipped_share([(signs, weight_signs(self._layers[name])) for name, (_, signs) in self._before.items()])
        self._before = {}
        # A run whose schedule is constant may have no end.
        end = 1.0 if self.schedule == "constant" else float(trainer.estimated_stepping_batches)
        wanted = wanted_share(self.rate, trainer.global_step / end, self.schedule)
        used = self._control.factor
        self._control.update(share, wanted, self.momentum)
        if trainer._logger_connector.should_update_logs:
            found = {"flipped_in_step": self._control.mean, "wanted": torch.tensor(wanted), "step_factor": used}
            for name, value in found.items():
                pl_module.log(f"signs/{name}", value, on_step=True, on_epoch=False)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lets go of the network."""
        if stage == "fit":
            self._layers, self._before, self._control = {}, {}, None

    def state_dict(self) -> dict[str, Any]:
        """The controller, if it has begun."""
        return {} if self._control is None else {"factor": self._control.factor.cpu(), "mean": self._control.mean.cpu()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it."""
        if state_dict:
            self._control = FlipControl(**state_dict)
