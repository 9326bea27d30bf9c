"""An owner's mark in what a network answers; what is put into batches is `bnfree.tickets.triggers`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F

from bnfree.callbacks.networks import network_to_call
from bnfree.classifiers import num_classes_of
from bnfree.errors import InputError
from bnfree.tickets.key_files import read_owner_key
from bnfree.tickets.triggers import TriggerClaim, claim, trigger_images, triggers_of_batch


class OwnershipTriggers(Callback):
    """Changes training: the first images of each batch are trigger images of an owner's key, with its classes.

    They take the places of `per_batch` images of the batch, of at most half of it, after augmentation and for every
    data module; the batch is as it was when the step is over. Which ones is a function of key, epoch, batch and
    process, so that a run that goes on sees the same. Logs `ownership/trigger_acc`, the share of all triggers that the
    network gives the key's class, at the end of each epoch. `bnfree ticket triggers` claims the network afterwards. A
    teacher does not know the triggers: with `DistilledClassifier` give its labels a weight.

    Args:
        key: file of the key, which `bnfree ticket key new` writes; the path alone is kept in a config.
        count: number of trigger images.
        per_batch: how many of them are in a batch of each process.
        message: what will be claimed.

    Raises:
        InputError: a number below 1; at the start of a training also a file without a key, or a network without a
            number of classes; later a batch that does not begin with images and labels.
    """

    def __init__(self, key: str | Path = "owner.key", count: int = 100, per_batch: int = 2, message: str = "") -> None:
        if count < 1 or not 1 <= per_batch <= count:
            raise InputError(f"count={count} must be at least 1, and per_batch={per_batch} from 1 to count.")
        self.key, self.count, self.per_batch, self.message = str(key), count, per_batch, message
        self._secret = ""
        self._classes = 0
        self._triggers: tuple[Tensor, Tensor] | None = None
        self._replaced: list[tuple[Tensor, Tensor]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reads the key."""
        if stage != "fit":
            return
        self._secret = read_owner_key(self.key)
        found = num_classes_of(network_to_call(pl_module, "OwnershipTriggers", itself=True))
        if found is None:
            raise InputError("backbone has no integer attribute num_classes, from which OwnershipTriggers draws.")
        self._classes = found

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Puts triggers into the batch."""
        images, labels = _images_and_labels(batch)
        if self._triggers is None or self._triggers[0].shape[1:] != images.shape[1:]:
            shape = (images.shape[1], images.shape[2], images.shape[3])
            self._triggers = trigger_images(self._secret, self.message, self.count, shape, self._classes)
        number = min(self.per_batch, len(images) // 2)
        chosen = triggers_of_batch(
            self._secret, self.count, number, trainer.current_epoch, batch_idx, trainer.global_rank
        )
        shown, classes = (values[chosen] for values in self._triggers)
        # Mixed images have shares of classes for a label.
        known = F.one_hot(classes, labels.shape[1]) if labels.dim() == 2 else classes
        for values, new in ((images, shown), (labels, known)):
            # A batch may be a view of what the data module keeps.
            self._replaced.append((values[:number], values[:number].clone()))
            values[:number] = new.to(values)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Gives the batch back what was in their places."""
        for place, values in self._replaced:
            place.copy_(values)
        self._replaced = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs how many triggers the network knows."""
        if self._triggers is not None:
            share = self._claim(trainer, pl_module, self._triggers).accuracy
            pl_module.log("ownership/trigger_acc", share, on_step=False, on_epoch=True, sync_dist=True)

    def _claim(self, trainer: Trainer, pl_module: LightningModule, triggers: tuple[Tensor, Tensor]) -> TriggerClaim:
        network = network_to_call(pl_module, "OwnershipTriggers", itself=True)
        modes = {module: module.training for module in network.modules()}
        network.eval()
        try:
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                answers = network(triggers[0].to(pl_module.device)).argmax(1)
        finally:
            for module, mode in modes.items():
                module.training = mode
        return claim(answers, triggers[1], self._classes)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forgets the secret."""
        if stage == "fit":
            self._secret, self._triggers, self._replaced = "", None, []


def _images_and_labels(batch: Any) -> tuple[Tensor, Tensor]:
    found = batch[:2] if isinstance(batch, list | tuple) else ()
    if len(found) < 2 or not all(isinstance(values, Tensor) for values in found) or found[0].dim() != 4:
        raise InputError(
            f"batch={type(batch).__name__} does not begin with images (N, C, H, W) and labels, among which "
            "OwnershipTriggers puts its own."
        )
    return found[0], found[1]
