"""A small classifier, its data and a trainer without side effects, for the tests of the callbacks."""

import warnings

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from bnfree.backbones import ReActNet18


class TinyClassifier(LightningModule):
    """Cross-entropy on a backbone; records nothing, logs nothing."""

    def __init__(self, backbone=None, make_optimizer=None):
        super().__init__()
        self.backbone = ReActNet18(width=4) if backbone is None else backbone
        self.make_optimizer = make_optimizer or (lambda module: torch.optim.SGD(module.parameters(), lr=0.1))

    def forward(self, images):
        return self.backbone(images)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def validation_step(self, batch, batch_idx):
        self.training_step(batch, batch_idx)

    def configure_optimizers(self):
        return self.make_optimizer(self)


class Head(nn.Module):
    """The smallest backbone with a classifier: one linear layer of each kind."""

    num_classes = 10

    def __init__(self):
        super().__init__()
        self.features = nn.Linear(3 * 8 * 8, 6)
        self.classifier = nn.Linear(6, 10)

    def forward(self, images):
        return self.classifier(torch.tanh(self.features(images.flatten(1))))


def loader(images=8, batch_size=4):
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(images, 3, 8, 8, generator=generator)
    return DataLoader(TensorDataset(pictures, torch.arange(images) % 10), batch_size)


@pytest.fixture(autouse=True)
def _quiet_and_seeded():
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*number of training batches.*")
        yield


@pytest.fixture
def classifier():
    return TinyClassifier


@pytest.fixture
def head():
    return Head


@pytest.fixture
def make_loader():
    return loader


@pytest.fixture
def make_trainer(tmp_path):
    def make(*callbacks, **kwargs):
        options = {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "default_root_dir": tmp_path,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
        }
        return Trainer(callbacks=list(callbacks), **{**options, **kwargs})

    return make


class ForeignModule(LightningModule):
    """Somebody else's: the network is in `net`, beside a frozen teacher, and there is no `forward`."""

    def __init__(self, network=None):
        super().__init__()
        self.net = ReActNet18(width=4) if network is None else network
        self.old = nn.Linear(3, 3).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=0.1)


@pytest.fixture
def foreign():
    return ForeignModule
