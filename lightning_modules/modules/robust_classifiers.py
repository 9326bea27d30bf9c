"""LightningModules whose training changes images or features against the network."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from bnfree.adversarial_style import AdversarialStyle, Kind, with_statistics_of
from bnfree.attacks import Attack, adversarial_features, pgd
from bnfree.errors import InputError
from bnfree.lightning_modules.modules.image_classifier import ImageClassifier
from bnfree.normalizers.sandwich import ADVERSARIAL, CLEAN, SandwichAffine, set_branch
from bnfree.state_dicts import uncompiled

KINDS: tuple[Kind, ...] = ("adversarial", "spread", "none")


class AdversarialClassifier(ImageClassifier):
    """Trains on clean images and on adversarial ones (PGD): half the sum of both losses.

    A network with `norm: sandwich_affine` or `sandwich` has scales and shifts of its own for either kind, and is
    evaluated with those for clean images. `train/loss` is what is minimised, `train/adversarial_loss` its second part.
    A step costs `steps` + 2 forward and backward passes.

    Source: Madry et al. (ICLR 2018); the two branches: Gong et al. (arXiv 2102.11382).

    Args:
        backbone: network from images (N, C, H, W) to logits (N, num_classes).
        epsilon: greatest change of a pixel of images scaled to [0, 1].
        step_size: change in one step of the attack.
        steps: of the attack.
        random_start: start from a drawn change, a function of (seed of the data, epoch, batch, process).
        options: what `ImageClassifier` takes.

    Raises:
        InputError: a value out of range; at the start of a run also data that do not say `mean` and `std`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        epsilon: float = 8 / 255,
        step_size: float = 2 / 255,
        steps: int = 7,
        random_start: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        self.attack = Attack(epsilon, step_size, steps, random_start)

    def setup(self, stage: str) -> None:
        """Checks as `ImageClassifier`, and that pixels can be told from normalised values."""
        super().setup(stage)
        if stage == "fit":
            normalization_of(self.trainer)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The training loss of a batch of images (N, C, H, W) and labels (N,)."""
        self._drawn_from = step_generator(self.trainer, "attack", batch_idx)
        return super().training_step(batch, batch_idx)

    def training_loss(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Half the sum of both losses, of shape ()."""
        network = uncompiled(self.backbone)
        branches = any(isinstance(module, SandwichAffine) for module in network.modules())
        if branches:
            set_branch(network, ADVERSARIAL)
        try:
            found = pgd(self, images, labels, self.attack, *normalization_of(self.trainer), self._drawn_from)
            adversarial = self.loss(self(found), labels)
        finally:
            if branches:
                set_branch(network, CLEAN)
        value, size = adversarial.detach(), len(images)
        self.log("train/adversarial_loss", value, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        return 0.5 * (self.loss(logits, labels) + adversarial)


class FeatureAttackClassifier(ImageClassifier):
    """Trains on clean features and on those behind one stage, changed so that the loss grows (A-FAN).

    The loss is half that of the clean features plus half that of the changed ones. The change is found by signed
    gradient steps through the layers behind the stage; it is a constant, so that the layers before the stage learn from
    both losses. Source: Chen et al. (TMLR 2022, arXiv 2103.12171), with K = 5 and steps of 1.5 / 255. Deviations: their
    changed features give no gradient to the layers before. A step costs K + 1 more passes of the layers behind the
    stage, K + 2 with `normalize`.

    Args:
        backbone: a network of residual units, such as `ReActNet18`.
        stage: whose feature map is changed, from 0.
        steps: K; 0 is the ordinary training.
        step_size: of the attack.
        normalize: the clean half of the loss is that of the clean features with mean and deviation of the changed ones,
            channel by channel and image by image; `train/acc` stays that of the clean features as they are.
        options: what `ImageClassifier` takes.

    Raises:
        InputError: a value out of range, or a network without stages.
    """

    def __init__(
        self,
        backbone: nn.Module,
        stage: int = 2,
        steps: int = 5,
        step_size: float = 1.5 / 255,
        normalize: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        check_stage(backbone, stage)
        if steps < 0 or not 0 <= step_size < float("inf"):
            raise InputError(f"steps={steps} and step_size={step_size} must be at least 0.")
        self.stage, self.steps, self.step_size, self.normalize = stage, steps, step_size, normalize
        self._features: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, C, H, W)."""
        if not self.training:
            return self.backbone(images)
        network: Any = uncompiled(self.backbone)
        self._features = network.until_stage(images, self.stage)
        return self._tail(self._features)

    def _tail(self, features: Tensor) -> Tensor:
        network: Any = uncompiled(self.backbone)
        return network.from_stage(features, self.stage)

    def training_loss(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Half the sum of both losses, of shape ()."""
        features, self._features = self._features, None
        clean = self.loss(logits, labels)
        if self.steps == 0 or features is None:
            return clean
        change = adversarial_features(self._tail, features, labels, self.loss, self.steps, self.step_size)
        changed = self.loss(self._tail(features + change), labels)
        if self.normalize:
            clean = self.loss(self._tail(with_statistics_of(features, features + change)), labels)
        value, size = changed.detach(), len(images)
        self.log("train/adversarial_loss", value, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        return 0.5 * (clean + changed)


class StyleClassifier(ImageClassifier):
    """Trains on feature maps behind some stages whose style is changed against the training (AdvStyle).

    See `bnfree.adversarial_style`; one of its three kinds is drawn for each step, the same on all processes. The
    strengths have a group of their own in the optimizer, without weight decay and gradient clipping.

    Args:
        backbone: a network of residual units, such as `ReActNet18`.
        stages: behind which the style is changed, from 0.
        reversal: by what the strengths' gradients are multiplied, beside -1.
        options: what `ImageClassifier` takes.

    Raises:
        InputError: a value out of range, or a network without stages.
    """

    def __init__(
        self, backbone: nn.Module, stages: Sequence[int] = (0, 1), reversal: float = 10.0, **options: Any
    ) -> None:
        super().__init__(backbone, **options)
        self.stages = sorted(set(stages))
        if not self.stages:
            raise InputError("stages=[] changes no style; give at least one stage, such as 0.")
        for stage in self.stages:
            check_stage(backbone, stage)
        network: Any = backbone
        channels = network.feature_info.channels()
        self.styles = nn.ModuleList(AdversarialStyle(channels[stage], reversal) for stage in self.stages)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The training loss of a batch of images (N, C, H, W) and labels (N,)."""
        data: Any = getattr(self.trainer, "datamodule", None)
        kind = Random(f"style/{getattr(data, 'seed', 0)}/{self.trainer.current_epoch}/{batch_idx}").choice(KINDS)
        for number, style in enumerate(self.styles):
            style.draw(kind, step_generator(self.trainer, f"style{number}", batch_idx))  # type: ignore[operator]
        return super().training_step(batch, batch_idx)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, C, H, W)."""
        if not self.training:
            return self.backbone(images)
        network: Any = uncompiled(self.backbone)
        return network.from_features(images, dict(zip(self.stages, self.styles, strict=True)))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups: those of the backbone, and one of the strengths."""
        own = {"params": list(self.styles.parameters()), "name": "styles", "weight_decay": 0.0, "clip_factor": 0.0}
        return [*super().parameter_groups(), own]


def check_stage(backbone: nn.Module, stage: int) -> None:
    """Refuses networks without stages, and stages that there are not.

    Raises:
        InputError: it says which there are.
    """
    info = getattr(backbone, "feature_info", None)
    if info is None or not hasattr(backbone, "from_stage"):
        raise InputError(f"backbone={type(backbone).__name__} has no stages to divide it at; take ReActNet18.")
    if stage not in range(len(info)):
        raise InputError(f"stage={stage} is none of the network's, which are 0 to {len(info) - 1}.")


def normalization_of(trainer: Any) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of each channel, of images scaled to [0, 1], by which the data are normalised.

    Raises:
        InputError: the data module does not say.
    """
    data = getattr(trainer, "datamodule", None)
    mean, std = getattr(data, "mean", None), getattr(data, "std", None)
    if mean is None or std is None:
        raise InputError(f"data={type(data).__name__} has no mean and std, by which an attack finds the pixels' range.")
    return mean, std


def step_generator(trainer: Any, name: str, batch_idx: int) -> torch.Generator:
    """A generator for one batch of one process, the same when the run is resumed there."""
    seed = getattr(getattr(trainer, "datamodule", None), "seed", 0)
    key = f"{name}/{seed}/{trainer.current_epoch}/{batch_idx}/{trainer.global_rank}"
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
