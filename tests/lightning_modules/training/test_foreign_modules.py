"""A LightningModule of one's own that logs no val/acc, or holds an uncalibrated network."""

import pytest
import torch

from bnfree.backbones import ReActNet18
from bnfree.lightning_modules import FitSettings, fit

MODULE = """
import torch
from lightning.pytorch import LightningModule
from torch.nn import functional as F

from bnfree.backbones import ReActNet18


class Own(LightningModule):
    def __init__(self, names: list[str]):
        super().__init__()
        self.net, self.names = ReActNet18(num_classes=10, in_channels=1, width=2), names

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        # Better and better, and at the same time a greater and greater loss.
        for name in self.names:
            self.log(name, float(self.current_epoch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)
"""
OPTIONS = {
    "data": {"class_path": "bnfree.datamodules.DigitsDataModule", "init_args": {"limit_train": 100}},
    "trainer.max_epochs": 2, "trainer.limit_train_batches": 1, "trainer.limit_val_batches": 1,
    "trainer.accelerator": "cpu", "trainer.enable_model_summary": False,
}  # fmt: skip


@pytest.fixture
def run(project):
    (project / "own_project.py").write_text(MODULE)

    def run(names, run_dir="run", ckpt_path=None, **more):
        model = {"class_path": "own_project.Own", "init_args": {"names": names}}
        return fit(FitSettings(options={"model": model, **OPTIONS, **more}, run_dir=run_dir, ckpt_path=ckpt_path))

    return run


@pytest.mark.parametrize(
    ("names", "epoch", "said"),
    [
        (["val/acc", "val_loss"], 1, None),
        (["val_loss"], 0, "Own logs no val/acc: the best checkpoint is that of the least val_loss; choose another"),
        (["val_loss", "valid_accuracy"], 1, "the best checkpoint is that of the greatest valid_accuracy"),
        (["val_f1"], None, "Own logs no val/acc, so there is no best checkpoint, only the last"),
    ],
)
def test_the_best_checkpoint_is_of_what_is_logged(run, capsys, names, epoch, said):
    result = run(names)
    out = capsys.readouterr().out
    assert result.last_checkpoint is not None
    assert ("logs no val/acc" in out) == (said is not None)
    assert (said or "") in out
    if epoch is None:
        assert result.best_checkpoint is None
    else:
        assert torch.load(result.best_checkpoint, weights_only=True)["epoch"] == epoch


def test_a_run_that_goes_on_knows_its_best(run):
    first = run(["val_loss"])
    again = run(["val_loss"], ckpt_path=first.last_checkpoint, **{"trainer.max_epochs": 3})
    assert torch.load(again.best_checkpoint, weights_only=True)["epoch"] == 0


def test_a_network_without_calibration_is_said_once_and_calibrated_by_the_callback(run, capsys):
    run(["val/acc"])
    assert capsys.readouterr().out.count("The BN-free network in Own is not calibrated: add --trainer.callbacks+=") == 1
    callbacks = [{"class_path": "bnfree.callbacks.Calibration"}]
    run(["val/acc"], run_dir="calibrated", **{"trainer.callbacks": callbacks})
    assert "not calibrated" not in capsys.readouterr().out


def test_a_small_data_set_calibrates_on_what_there_is(project):
    options = {"data.limit_train": 100, "model.backbone.width": 2, "trainer.max_epochs": 1, "test_after_fit": False}
    result = fit(FitSettings("quickstart", options, run_dir="run"))
    data = result.model.trainer.datamodule
    assert len(data.calibration_images(256)) == 100
    assert torch.equal(data.calibration_images(256)[:10], data.calibration_images(10))
    fresh = ReActNet18(num_classes=10, in_channels=1, width=2).body[2][0].beta
    assert result.model.backbone.body[2][0].beta != fresh
