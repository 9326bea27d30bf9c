"""Trainings against attacks: their losses by hand, and what they leave alone."""

import copy

import pytest
import torch
from torch.nn import functional as F
from torch.optim import SGD

from bnfree.attacks import Attack, adversarial_features, pgd
from bnfree.backbones import NFResNet18, ReActNet18
from bnfree.errors import InputError
from bnfree.lightning_modules import ImageClassifier
from bnfree.lightning_modules.modules.robust_classifiers import (
    AdversarialClassifier,
    FeatureAttackClassifier,
    StyleClassifier,
)
from bnfree.normalizers.sandwich import set_branch


def network(norm="none"):
    torch.manual_seed(0)
    return ReActNet18(num_classes=4, width=4, norm=norm)


@pytest.fixture
def pixels(corners):
    """Data that say how they are normalised."""
    corners.mean, corners.std = (0.5,) * 3, (0.25,) * 3
    corners.dataset.tensors[0].clamp_(-2, 2)
    return corners


def train(module, data, make_trainer, batches=1):
    trainer = make_trainer(limit_train_batches=batches, limit_val_batches=1)
    trainer.fit(module, datamodule=data)
    return trainer


STEP = {"optimizer": lambda p: SGD(p, lr=0.5), "lr_scheduler": None, "calibration": "none"}


@pytest.mark.parametrize("norm", ["none", "sandwich_affine"])
def test_the_loss_is_half_clean_and_half_adversarial(pixels, make_trainer, norm):
    backbone = network(norm)
    plain = copy.deepcopy(backbone)
    module = AdversarialClassifier(backbone, steps=2, random_start=False, **STEP)
    trainer = train(module, pixels, make_trainer)
    images, labels = pixels.dataset.tensors[0][:16], pixels.dataset.tensors[1][:16]
    clean = F.cross_entropy(plain(images), labels)
    if norm != "none":
        set_branch(plain, 1)
    found = pgd(plain, images, labels, Attack(steps=2, random_start=False), pixels.mean, pixels.std)
    attacked = F.cross_entropy(plain(found), labels)
    (0.5 * (clean + attacked)).backward()
    assert trainer.callback_metrics["train/adversarial_loss"].item() == pytest.approx(attacked.item(), rel=1e-4)
    for ours, theirs in zip(backbone.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs - 0.5 * theirs.grad, rtol=1e-3, atol=1e-4)


def test_feature_attack_without_steps_is_the_ordinary_training(corners, make_trainer):
    ours, theirs = network(), network()
    train(FeatureAttackClassifier(ours, steps=0, **STEP), corners, make_trainer)
    train(ImageClassifier(theirs, **STEP), corners, make_trainer)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("normalize", [False, True])
def test_the_feature_attack_is_that_of_its_definition(corners, make_trainer, normalize):
    backbone = network()
    plain = copy.deepcopy(backbone)
    module = FeatureAttackClassifier(backbone, stage=1, steps=3, step_size=0.05, normalize=normalize, **STEP)
    trainer = train(module, corners, make_trainer)
    images, labels = corners.dataset.tensors[0][:16], corners.dataset.tensors[1][:16]
    features = plain.until_stage(images, 1)

    def tail(x):
        return plain.from_stage(x, 1)

    torch.testing.assert_close(tail(features), plain(images))
    change = adversarial_features(tail, features, labels, F.cross_entropy, 3, 0.05)
    changed = F.cross_entropy(tail(features + change), labels)
    assert trainer.callback_metrics["train/adversarial_loss"].item() == pytest.approx(changed.item(), rel=1e-4)
    clean = features
    if normalize:
        pair = (features.detach(), features.detach() + change)
        old, new = (torch.std_mean(f, (2, 3), correction=0, keepdim=True) for f in pair)
        clean = (features - old[1]) / old[0] * new[0] + new[1]
    (0.5 * (F.cross_entropy(tail(clean), labels) + changed)).backward()
    for ours, theirs in zip(backbone.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs - 0.5 * theirs.grad, rtol=1e-3, atol=1e-4)


def test_styles_train_apart_and_evaluation_does_not_know_them(corners, make_trainer):
    module = StyleClassifier(network(), **STEP)
    trainer = train(module, corners, make_trainer, batches=4)
    assert all(style.started for style in module.styles)
    group = trainer.optimizers[0].param_groups[-1]
    assert len(group["params"]) == 4
    assert group["weight_decay"] == group["clip_factor"] == 0
    images = corners.dataset.tensors[0][:4]
    assert torch.equal(module.eval()(images), module.backbone(images))


@pytest.mark.parametrize("kind", [FeatureAttackClassifier, StyleClassifier])
def test_networks_without_such_a_stage_are_refused(kind):
    with pytest.raises(InputError, match="stage=9 is none of the network's, which are 0 to 3"):
        kind(
            network(),
            **{"stage" if kind is FeatureAttackClassifier else "stages": 9 if kind is FeatureAttackClassifier else [9]},
        )
    with pytest.raises(InputError, match="backbone=NFResNet18 has no stages"):
        kind(NFResNet18(num_classes=4, width=4))


def test_data_that_do_not_say_their_pixels_are_refused(corners, make_trainer):
    with pytest.raises(InputError, match="has no mean and std"):
        train(AdversarialClassifier(network(), **STEP), corners, make_trainer)
