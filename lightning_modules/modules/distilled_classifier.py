"""The LightningModule that trains a backbone to give a teacher's probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torchmetrics import MeanMetric

from bnfree.discriminator import LogitDiscriminator, discriminator_loss
from bnfree.distillation import corrected_distillation_loss, cosine_share, distillation_loss, mean_probabilities
from bnfree.errors import InputError
from bnfree.lightning_modules.modules.image_classifier import ImageClassifier
from bnfree.lightning_modules.modules.teacher import Teacher
from bnfree.lightning_modules.modules.teacher_logits import TeacherLogits

# On so many validation images a teacher's accuracy is known to about one point.
IMAGES_TO_TEST_ON = 1000


class DistilledClassifier(ImageClassifier):
    """Trains a backbone on the probabilities that one or several frozen teachers give to the same augmented images.

    The loss is (1 - w) * soft + w * hard, where w is `hard_label_weight`, hard is `loss` to the labels (the
    cross-entropy, with `label_smoothing`), and soft is T^2 times the cross-entropy to the teachers' softmax(logits /
    T), averaged over the teachers as probabilities (MEAL V2). The default, T = 1 and no hard labels, is the
    distribution loss of ReActNet and BNN_NoBN. `train/loss` is the loss that is minimised, `train/distillation_loss`
    its soft part where both count; `val/loss` and `test/loss` stay the cross-entropy to the labels, so that they
    compare with runs without a teacher.

    Teachers are in evaluation mode, without gradients, in the student's precision: under autocast as the student is,
    and of its dtype otherwise. They are loaded for training only and no part of any checkpoint. Before the first step
    the accuracy of each on up to 1,000 validation images is printed, so that a wrong teacher is seen at once.

    With `logits_cache` the teachers' logits for the training images are computed once and read from files afterwards,
    in this run and in others with the same teachers, images and augmentation (the idea of FKD, Shen and Xing, arXiv
    2112.01528). It needs images that come again: `data.augmentation_cycle`, or no augmentation. The first epoch of each
    variant costs one pass of the teachers, later ones nothing; once all files are there the teachers leave memory.
    Logits are those of the data module's images: a callback that changes images on their way makes them wrong.

    Args:
        backbone: network from images (N, C, H, W) to logits (N, num_classes), such as `ReActNet18`.
        teacher: one teacher or a list of them. In Python a network with its weights in it can stand for a teacher.
        temperature: T; above 1, the teachers' smaller probabilities weigh more.
        hard_label_weight: w, from 0 (the teachers alone) to 1 (the labels alone).
        logits_cache: folder for the teachers' logits; None: the teachers answer anew in every step.
        correct_teacher: for images on which the teachers together err, soft is in part replaced by the cross-entropy to
            the label: wholly at first, no longer at the end, along a cosine (`corrected_distillation_loss`).
        discriminator_weight: by what the loss of a discriminator between the teachers' logits (their mean) and the
            student's is multiplied and added to soft (MEAL V2; `bnfree.discriminator`); 0: there is none. It is part of
            the checkpoint, and not of the backbone.
        discriminator_lr: its learning rate; it has a group of its own in the optimizer, and no gradient clipping.
        adversarial: the student learns to be taken for the teacher. False, as in the public code of MEAL V2: both
            learn to be told apart.
        options: what `ImageClassifier` takes.

    Raises:
        InputError: a value out of range, or no teacher; at the start of a run also a teacher that cannot be loaded or
            does not fit the data, and a `logits_cache` of other teachers, images or augmentation.

    Example:
        >>> from bnfree.backbones import ReActNet18
        >>> teacher = ReActNet18(num_classes=10, width=16, norm="batch_norm")  # with trained weights in practice
        >>> module = DistilledClassifier(ReActNet18(num_classes=10, width=8), teacher=teacher, temperature=2.0)
    """

    def __init__(
        self,
        backbone: nn.Module,
        teacher: Teacher | list[Teacher],
        temperature: float = 1.0,
        hard_label_weight: float = 0.0,
        logits_cache: str | None = None,
        correct_teacher: bool = False,
        discriminator_weight: float = 0.0,
        discriminator_lr: float = 1e-4,
        adversarial: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        given = list(teacher) if isinstance(teacher, list | tuple) else [teacher]
        if not given:
            raise InputError("teacher=[] holds no teacher; give at least one, or train with ImageClassifier.")
        for one in given:
            if not isinstance(one, Teacher | nn.Module):
                raise InputError(f"teacher={one!r} is a {type(one).__name__}; give a Teacher or a network.")
        if not 0 < temperature < float("inf"):
            raise InputError(f"temperature={temperature} must be a finite number greater than 0.")
        if not 0 <= hard_label_weight <= 1:
            raise InputError(f"hard_label_weight={hard_label_weight} must be at least 0 and at most 1.")
        if not 0 <= discriminator_weight < float("inf"):
            raise InputError(f"discriminator_weight={discriminator_weight} must be a finite number of at least 0.")
        if not 0 < discriminator_lr < float("inf"):
            raise InputError(f"discriminator_lr={discriminator_lr} must be a finite number greater than 0.")
        if adversarial and discriminator_weight == 0:
            raise InputError("adversarial=True has no discriminator; give a discriminator_weight above 0, too.")
        # As `ImageClassifier` does with networks: from a config these are plain values, built in Python they are not.
        if any(value is one for value in _as_list(self.hparams.get("teacher")) for one in given):
            del self.hparams["teacher"]
        # In a plain list, out of sight of everything that looks for modules.
        self.teachers = [one if isinstance(one, Teacher) else Teacher(network=one) for one in given]
        self.temperature, self.hard_label_weight = temperature, hard_label_weight
        self.correct_teacher = correct_teacher
        self.discriminator_weight, self.discriminator_lr = discriminator_weight, discriminator_lr
        self.adversarial = adversarial
        self.discriminator = LogitDiscriminator(self._num_classes()) if discriminator_weight else None
        # As the losses of `ImageClassifier`: NaN is not left out, which would also wait for a GPU in every step.
        self.soft_losses = MeanMetric(nan_strategy="disable")
        self.logits_cache = None if logits_cache is None else TeacherLogits(logits_cache)

    def setup(self, stage: str) -> None:
        """Checks as `ImageClassifier`; loads the teachers for a fit."""
        super().setup(stage)
        if stage == "fit":
            shape = getattr(getattr(self.trainer, "datamodule", None), "image_shape", None)
            for teacher in self.teachers:
                teacher.load(self._num_classes(), shape)
            if self.logits_cache is not None:
                self.logits_cache.prepare(self, self.teachers)

    def on_fit_start(self) -> None:
        """Moves the teachers to the student's device and dtype."""
        like = next(self.backbone.parameters())
        for teacher in self.teachers:
            teacher.to(self.device, like.dtype)

    def on_train_start(self) -> None:
        """Says how good the teachers are; calibrates as `ImageClassifier`."""
        if self.trainer.is_global_zero:
            with isolate_rng(include_cuda=False), torch.no_grad(), self.trainer.precision_plugin.forward_context():
                self._test_teachers()
        super().on_train_start()
        # An epoch that is resumed in its middle has no other start.
        self.on_train_epoch_start()

    def on_train_epoch_start(self) -> None:
        """Opens the cached logits of the epoch's images."""
        if self.logits_cache is None:
            return
        self.logits_cache.select(self, self.teachers)
        if self.logits_cache.complete:
            self._release_teachers()

    def teardown(self, stage: str) -> None:
        """Lets go of the teachers."""
        self._release_teachers()
        if self.logits_cache is not None:
            self.logits_cache.release()

    def _release_teachers(self) -> None:
        for teacher in self.teachers:
            teacher.release()

    def _teacher_logits(self, images: Tensor) -> list[Tensor]:
        if self.logits_cache is None:
            return [teacher(images) for teacher in self.teachers]
        rows = self.logits_cache.rows(cast(Any, self.trainer).datamodule.positions)
        return [logits.to(images.device, non_blocking=True) for logits in rows]

    def training_loss(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of the class's description, of shape (), for logits (N, num_classes) of images (N, C, H, W)."""
        taught = self._teacher_logits(images)
        probabilities = mean_probabilities(taught, self.temperature)
        if self.correct_teacher:
            correction = cosine_share(self.trainer.global_step / self.trainer.estimated_stepping_batches)
            shown = labels.argmax(1) if labels.dim() == 2 else labels
            soft = corrected_distillation_loss(logits, probabilities, shown, correction, self.temperature)
        else:
            soft = distillation_loss(logits, probabilities, self.temperature)
        if self.discriminator is not None:
            teacher = torch.stack(taught).mean(0)
            told_apart = discriminator_loss(self.discriminator, logits, teacher, self.adversarial)
            told = told_apart.detach()
            self.log("train/discriminator_loss", told, on_step=False, on_epoch=True, sync_dist=True)
            soft = soft + self.discriminator_weight * told_apart
        if self.hard_label_weight == 0:
            return soft
        self.soft_losses.update(soft.detach().expand(len(labels)))
        self.log("train/distillation_loss", self.soft_losses, on_step=False, on_epoch=True, batch_size=len(labels))
        hard = self.loss(logits, labels)
        return (1 - self.hard_label_weight) * soft + self.hard_label_weight * hard

    def loss_of_guessing(self) -> float | None:
        """What `train/loss` is where all classes have the same logits; None with a discriminator, whose loss adds."""
        hard = super().loss_of_guessing()
        if hard is None or self.discriminator is not None:
            return None
        soft = self.temperature**2 * math.log(self._num_classes())
        return (1 - self.hard_label_weight) * soft + self.hard_label_weight * hard

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups: those of the backbone, and one of the discriminator."""
        groups = super().parameter_groups()
        if self.discriminator is not None:
            own = {"lr": self.discriminator_lr, "weight_decay": 0.0, "clip_factor": 0.0}
            groups.append({"params": list(self.discriminator.parameters()), "name": "discriminator", **own})
        return groups

    def _test_teachers(self) -> None:
        names = [f"Teacher {teacher.name}" for teacher in self.teachers]
        names += ["Teachers together"] if len(self.teachers) > 1 else []
        correct, seen = [0] * len(names), 0
        for images, labels in self._validation_batches():
            logits = [teacher(images) for teacher in self.teachers]
            answers = [*logits, *([mean_probabilities(logits)] if len(logits) > 1 else [])]
            for i, answer in enumerate(answers):
                correct[i] += int((answer.argmax(1) == labels).sum())
            seen += len(labels)
        for name, count in zip(names, correct, strict=True):
            if seen:
                rank_zero_info(f"{name}: {100 * count / seen:.2f} % of {seen:,} validation images.")
            else:
                rank_zero_info(f"{name}: no validation images to test it on.")

    def _validation_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels, at most `IMAGES_TO_TEST_ON`, without touching the loaders of the run where possible."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if hasattr(data, "validation_batches"):
            like = next(self.backbone.parameters())
            for images, labels in data.validation_batches(IMAGES_TO_TEST_ON):
                yield images.to(like.device, like.dtype), labels.to(like.device)
            return
        loader = self.trainer.val_dataloaders
        loader = loader[0] if isinstance(loader, list) and loader else loader
        left = IMAGES_TO_TEST_ON
        for batch in cast(Iterable[Any], loader or []):
            moved = self.trainer.precision_plugin.convert_input(self.trainer.strategy.batch_to_device(batch))
            images, labels = moved[0][:left], moved[1][:left]
            yield images, labels
            left -= len(labels)
            if left <= 0:
                return


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
