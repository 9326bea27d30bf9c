"""What the modules log for an epoch is that of all processes."""

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torchmetrics import Metric

from bnfree.backbones import ReActNet18
from bnfree.lightning_modules import DistilledClassifier
from bnfree.lightning_modules.modules.robust_classifiers import AdversarialClassifier, FeatureAttackClassifier


class Dense(nn.Module):
    num_classes, in_channels = 4, 3

    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(192, 4)

    def forward(self, images):
        return self.classifier(images.flatten(1))


MODULES = {
    "distilled": (DistilledClassifier, {"teacher": Dense(), "discriminator_weight": 1.0, "hard_label_weight": 0.5}),
    "adversarial": (AdversarialClassifier, {"steps": 1}),
    "feature_attack": (FeatureAttackClassifier, {"steps": 1}),
}


@pytest.mark.parametrize("name", MODULES)
def test_numbers_of_an_epoch_are_added_up_over_processes(name, corners, make_trainer, monkeypatch):
    kind, options = MODULES[name]
    corners.mean, corners.std = (0.5,) * 3, (0.25,) * 3
    torch.manual_seed(0)
    backbone = ReActNet18(num_classes=4, width=4, blocks_per_stage=[1, 1, 1, 1])
    module = kind(backbone, optimizer=lambda p: SGD(p, lr=0.1), lr_scheduler=None, calibration="none", **options)
    logged, log = {}, module.log

    def watched(name, value, **how):
        # Objects of torchmetrics see to it themselves.
        logged[name] = not how.get("on_epoch") or isinstance(value, Metric) or bool(how.get("sync_dist"))
        log(name, value, **how)

    monkeypatch.setattr(module, "log", watched)
    make_trainer(limit_train_batches=1, limit_val_batches=1, max_epochs=1).fit(module, datamodule=corners)
    assert "train/loss" in logged
    assert [name for name, everywhere in logged.items() if not everywhere] == []
