"""A user's own project, with a network, data and a callback in a module of the working directory."""

import logging
import os
import sys
from pathlib import Path
from unittest import mock

import pytest

from bnfree.lightning_modules.cli import main

MODULE = """
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from bnfree.errors import InputError


class ToyNet(nn.Module):
    def __init__(self, width: int = 4):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))

    def forward(self, images):
        return self.layers(images)


class DeepToyNet(ToyNet):
    def __init__(self, width: int = 4):
        super().__init__(width)
        self.more = nn.Linear(2, 2)


class ToyModule(LightningModule):
    def __init__(
        self,
        backbone: nn.Module,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.Adam(parameters, lr=0.01),
        smoothing: float = 0.0,
    ):
        super().__init__()
        self.save_hyperparameters(logger=False)
        for name in ("backbone", "optimizer"):
            if not isinstance(self.hparams[name], dict):
                del self.hparams[name]
        if smoothing > 1:
            raise InputError(f"smoothing={smoothing} must be at most 1.")
        self.backbone, self.optimizer, self.smoothing = backbone, optimizer, smoothing

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = F.cross_entropy(self.backbone(images), labels, label_smoothing=self.smoothing)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/acc", self.accuracy(batch), sync_dist=True)

    def test_step(self, batch, batch_idx):
        self.log("test/acc", self.accuracy(batch), sync_dist=True)

    def predict_step(self, batch, batch_idx):
        probability, label = self.backbone(batch[0]).softmax(1).max(1)
        return {"index": batch[1], "class": label, "probability": probability}

    def accuracy(self, batch):
        return (self.backbone(batch[0]).argmax(1) == batch[1]).float().mean()

    def configure_optimizers(self):
        optimizer = self.optimizer(self.backbone.parameters())
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)]


class ToyData(LightningDataModule):
    def __init__(self, batch_size: int = 8, broken: bool = False):
        super().__init__()
        if broken:
            raise ValueError("a mistake in the user's own code")
        self.batch_size = batch_size

    def train_dataloader(self):
        images = torch.randn(32, 1, 2, 2, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(images, (images.sum((1, 2, 3)) > 0).long()), batch_size=self.batch_size)

    val_dataloader = test_dataloader = train_dataloader

    def predict_dataloader(self):
        images = torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(1))
        return DataLoader(TensorDataset(images, torch.arange(5)), batch_size=self.batch_size)


class ToyCallback(Callback):
    def __init__(self, factor: float = 1.0, fail: bool = False):
        self.factor, self.fail = factor, fail

    def on_fit_start(self, trainer, pl_module):
        if self.fail:
            raise InputError("fail=True does not do.")
"""

CONFIG = """\
model:
  class_path: toy_project.ToyModule
  init_args:
    backbone: {class_path: toy_project.ToyNet, init_args: {width: 4}}
    optimizer: {class_path: torch.optim.Adam, init_args: {lr: 0.05}}
data:
  class_path: toy_project.ToyData
trainer:
  max_epochs: 2
  accelerator: cpu
  log_every_n_steps: 2
  enable_model_summary: false
  callbacks:
    - class_path: toy_project.ToyCallback
"""


def _write_project(directory: Path) -> None:
    (directory / "toy_project.py").write_text(MODULE)
    (directory / "toy.yaml").write_text(CONFIG)


@pytest.fixture(autouse=True)
def surroundings():
    """Leaves the environment and the import path as they were."""
    # Lightning's logger holds on to the stderr of the first test, which pytest has closed by the next one.
    quiet = mock.patch.object(logging, "raiseExceptions", False)
    with mock.patch.dict(os.environ), mock.patch.object(sys, "path", list(sys.path)), quiet:
        yield


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The directory of the project, which is the working directory."""
    _write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def bnfree(project, capsys):
    """Runs the command; returns its exit code, stdout and stderr."""

    def run(*arguments):
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as exit:
            # `--help` and `--print_config` leave in this way.
            code = exit.code
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


@pytest.fixture
def complaint(bnfree):
    """Runs a command that must fail; returns what it says, which must be one line."""

    def run(*arguments):
        code, _, stderr = bnfree(*arguments)
        assert code == 2
        lines = [line for line in stderr.splitlines() if line.startswith("bnfree: error: ")]
        assert len(lines) == 1
        assert stderr.splitlines()[-1] == lines[0]
        assert "Traceback" not in stderr
        assert len(lines[0]) < 600
        return lines[0].removeprefix("bnfree: error: ")

    return run


@pytest.fixture(scope="module")
def place_of_module(tmp_path_factory):
    """Another directory with the project, which all tests of a module share."""
    directory = tmp_path_factory.mktemp("place")
    _write_project(directory)
    return directory


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Run directory of a finished run of two epochs; not to be changed."""
    directory = tmp_path_factory.mktemp("trained")
    _write_project(directory)
    here = Path.cwd()
    with mock.patch.dict(os.environ), mock.patch.object(sys, "path", list(sys.path)):
        os.chdir(directory)
        try:
            assert main(["fit", "--config", "toy.yaml", "--run_dir", "run"]) == 0
        finally:
            os.chdir(here)
    return directory / "run"
