"""A LightningModule that trains channel gates together with the network they are in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bnfree.backbones.gated_unit import GatedUnit
from bnfree.errors import InputError
from bnfree.lightning_modules.modules.image_classifier import ImageClassifier


class GatedClassifier(ImageClassifier):
    """Trains a network and the gates of its channels, each on a loss of its own (fire together wire together).

    Logs the mean `active_share` of channels of each part; of validation and test also `active_ops`, the OPs of all
    gated convolutions with their predictors for the channels that were on, of an image. Meant for a trained network
    (`init_from`), which needs no gates in its file.

    Source and deviations: `bnfree.backbones.gated_unit`.

    Args:
        backbone: a network with gates, `ReActNet18(gating=True)`.
        mass: share of the responses' sum that the channels which should be on make up; 1: only dead ones are off.
        mask_weight: weight of the gates' loss, the mean over gates.
        decoupled: the loss of the task does not train the predictors; False: it does, straight through the hard gate.
        cool_down: share of the steps at the end in which the gates' loss is off.
        options: what `ImageClassifier` takes.

    Raises:
        InputError: a value out of range, or a network without gates.
    """

    def __init__(
        self,
        backbone: nn.Module,
        mass: float = 0.9,
        mask_weight: float = 1.0,
        decoupled: bool = True,
        cool_down: float = 0.2,
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        if not 0 < mass <= 1:
            raise InputError(f"mass={mass} must be greater than 0 and at most 1.")
        if not mask_weight >= 0:
            raise InputError(f"mask_weight={mask_weight} must be at least 0.")
        if not 0 <= cool_down < 1:
            raise InputError(f"cool_down={cool_down} must be at least 0 and less than 1.")
        self.mask_weight, self.cool_down = mask_weight, cool_down
        if not self._units():
            raise InputError(
                f"backbone={type(backbone).__name__} has no gates; set model.init_args.backbone.init_args.gating to "
                "true in a ReActNet18."
            )
        for unit in self._units():
            unit.gate.mass, unit.gate.decoupled = mass, decoupled

    def training_loss(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """The sum of the task's loss and the gates', of shape ()."""
        losses = [unit.gate.loss for unit in self._units() if unit.gate.loss is not None]
        for unit in self._units():
            unit.gate.loss = None
        self._log_share("train", len(images))
        total = self._schedule_total
        cooling = bool(total) and self.trainer.global_step >= (1 - self.cool_down) * total
        # Times 0, and not left out: processes wait for the gradients of all parameters.
        weight = 0.0 if cooling else self.mask_weight
        return self.loss(logits, labels) + weight * torch.stack(losses).mean()

    def _evaluate(self, stage: str, batch: tuple[Tensor, Tensor]) -> None:
        super()._evaluate(stage, batch)
        self._log_share(stage, len(batch[0]))
        active = sum(unit.ops[1] for unit in self._units())
        self.log(f"{stage}/active_ops", active, on_step=False, on_epoch=True, batch_size=len(batch[0]), sync_dist=True)

    def _log_share(self, stage: str, count: int) -> None:
        share = torch.stack([unit.gate.share for unit in self._units()]).mean()
        self.log(f"{stage}/active_share", share, on_step=False, on_epoch=True, batch_size=count, sync_dist=True)

    def _units(self) -> list[GatedUnit]:
        return [module for module in self.backbone.modules() if isinstance(module, GatedUnit)]
