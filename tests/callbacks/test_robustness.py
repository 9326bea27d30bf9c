"""Accuracies on attacked and corrupted test images."""

import pytest
import torch
from lightning.pytorch import Trainer

from bnfree.attacks import Attack, pgd
from bnfree.backbones import ReActNet18
from bnfree.callbacks import AttackedAccuracy, CorruptedAccuracy
from bnfree.datamodules import DigitsDataModule
from bnfree.errors import InputError
from bnfree.lightning_modules import ImageClassifier


@pytest.mark.slow
def test_they_are_logged_beside_the_accuracy_and_an_attack_lowers_it(tmp_path):
    torch.manual_seed(0)
    module = ImageClassifier(
        ReActNet18(num_classes=10, in_channels=1, width=4), calibration_images=32,
        optimizer=lambda p: torch.optim.Adam(p, lr=0.01),
    )  # fmt: skip
    data = DigitsDataModule(batch_size=32)
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, limit_val_batches=0, limit_test_batches=1, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path,
        callbacks=[AttackedAccuracy(epsilon=0.1, step_size=0.05, steps=3), CorruptedAccuracy(["contrast"], [1, 5])],
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    found = trainer.test(module, datamodule=data, verbose=False)[0]
    assert all(p.grad is None for p in module.parameters())
    assert set(found) >= {"test/acc", "test/acc_pgd", "test/acc_contrast", "test/acc_corrupted"}
    assert found["test/acc"] > 0.3
    assert found["test/acc_pgd"] < found["test/acc"] - 0.1
    assert found["test/acc_contrast"] == pytest.approx(found["test/acc_corrupted"])
    # A random change of the same size does less.
    images, labels = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    noisy = pgd(module.eval(), images, labels, Attack(0.1, 0.05, 0), data.mean, data.std)
    assert (module(noisy).argmax(1) == labels).float().mean() > found["test/acc_pgd"]


def test_mistakes():
    with pytest.raises(InputError, match="corruption='fog' is not known"):
        CorruptedAccuracy(["fog"])
    with pytest.raises(InputError, match="severity=7 must be"):
        CorruptedAccuracy(severities=[7])
    with pytest.raises(InputError, match="severities=\\[\\] corrupts nothing"):
        CorruptedAccuracy(severities=[])
