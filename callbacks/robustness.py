"""Accuracy on images that are attacked or corrupted, in a test."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from bnfree.attacks import Attack, pgd
from bnfree.callbacks.networks import network_to_call
from bnfree.corruptions import CORRUPTIONS, corrupt
from bnfree.errors import InputError


class _ChangedImages(Callback):
    """Tests on images that a subclass changes, and logs the accuracies as `test/acc_...`."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses data whose pixels cannot be told from normalised values."""
        if stage == "test":
            self._normalization(trainer)

    def _normalization(self, trainer: Trainer) -> tuple[Sequence[float], Sequence[float]]:
        data: Any = getattr(trainer, "datamodule", None)
        mean, std = getattr(data, "mean", None), getattr(data, "std", None)
        if mean is None or std is None:
            raise InputError(
                f"data={type(data).__name__} has no mean and std, by which {type(self).__name__} finds pixels again."
            )
        return mean, std

    def _log(self, pl_module: LightningModule, name: str, logits: Tensor, labels: Tensor) -> None:
        right = (logits.argmax(1) == labels).float().mean()
        pl_module.log(f"test/acc_{name}", right, on_step=False, on_epoch=True, batch_size=len(labels), sync_dist=True)


class AttackedAccuracy(_ChangedImages):
    """Only observes: in a test also the accuracy on adversarial images (PGD), `test/acc_pgd`.

    Args:
        epsilon: greatest change of a pixel of images scaled to [0, 1].
        step_size: change in one step.
        steps: number of steps; PGD-20 is usual.
        seed: of the random start.

    Raises:
        InputError: a value out of range; in a test also data that do not say `mean` and `std`.
    """

    def __init__(self, epsilon: float = 8 / 255, step_size: float = 2 / 255, steps: int = 20, seed: int = 0) -> None:
        self.attack, self.seed = Attack(epsilon, step_size, steps), seed

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Attacks a batch."""
        network = network_to_call(pl_module, "AttackedAccuracy", itself=True)
        generator = _generator(self.seed, "pgd", batch_idx, trainer.global_rank)
        # Lightning tests without gradients, which an attack needs.
        with torch.inference_mode(False), trainer.precision_plugin.forward_context():
            images, labels = batch[0].clone(), batch[1].clone()
            found = pgd(network, images, labels, self.attack, *self._normalization(trainer), generator)
            with torch.no_grad():
                logits = network(found)
        self._log(pl_module, "pgd", logits, labels)


class CorruptedAccuracy(_ChangedImages):
    """Only observes: in a test also the accuracy on corrupted images, of each kind and of all, `test/acc_corrupted`.

    Args:
        kinds: of `bnfree.corruptions`; none given: all.
        severities: 1 to 5; the accuracy of a kind is the mean over them.
        seed: of what is drawn.

    Raises:
        InputError: a kind or a severity that there is not; in a test also data that do not say `mean` and `std`.
    """

    def __init__(self, kinds: Sequence[str] = (), severities: Sequence[int] = (1, 3, 5), seed: int = 0) -> None:
        self.kinds, self.severities, self.seed = list(kinds) or list(CORRUPTIONS), list(severities), seed
        if not self.severities:
            raise InputError("severities=[] corrupts nothing; give at least one of 1 to 5.")
        for kind in self.kinds:
            for severity in self.severities:
                corrupt(torch.zeros(1, 1, 4, 4), kind, severity)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Corrupts a batch."""
        network = network_to_call(pl_module, "CorruptedAccuracy", itself=True)
        images, labels = batch
        mean, std = (torch.tensor(list(v), device=images.device).view(-1, 1, 1) for v in self._normalization(trainer))
        pixels = images.float() * std + mean
        every = []
        for kind in self.kinds:
            found = []
            for severity in self.severities:
                generator = _generator(self.seed, f"{kind}{severity}", batch_idx, trainer.global_rank)
                changed = ((corrupt(pixels, kind, severity, generator) - mean) / std).to(images.dtype)
                with torch.no_grad(), trainer.precision_plugin.forward_context():
                    found.append(network(changed))
            self._log(pl_module, kind, torch.cat(found), labels.repeat(len(found)))
            every += found
        self._log(pl_module, "corrupted", torch.cat(every), labels.repeat(len(every)))


def _generator(seed: int, name: str, batch_idx: int, rank: int) -> torch.Generator:
    digest = hashlib.blake2b(f"{name}/{seed}/{batch_idx}/{rank}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
