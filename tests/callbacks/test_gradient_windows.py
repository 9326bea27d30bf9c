import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from bnfree.backbones import ReActNet18
from bnfree.callbacks import GradientWindows
from bnfree.errors import InputError
from bnfree.lightning_modules import ImageClassifier


class Betas(Callback):
    """Of the last unit, before every batch and after it."""

    def __init__(self):
        self.before, self.after = [], []

    def on_train_epoch_start(self, trainer, pl_module):
        self.before.append(pl_module.backbone.body[3][3].beta.item())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.after.append(pl_module.backbone.body[3][3].beta.item())


def test_rescales_before_the_first_batch_of_every_epoch_but_the_first(classifier, make_trainer, make_loader):
    betas = Betas()
    trainer = make_trainer(GradientWindows(every_n_epochs=2), betas, max_epochs=4)
    trainer.fit(classifier(), make_loader(), make_loader())
    first, second, third, fourth = (betas.after[i : i + 2] for i in range(0, 8, 2))
    start = betas.before[0]
    assert first == second == [start, start]
    assert third[0] != start
    assert third == fourth == [third[0]] * 2


def test_weights_of_another_training_begin_with_full_windows(make_trainer, make_loader, tmp_path):
    network = ReActNet18(10, width=4)
    with torch.no_grad():
        network.body[3][3].beta.mul_(5)
    torch.save(network.state_dict(), tmp_path / "step1.pt")
    betas = Betas()
    module = ImageClassifier(ReActNet18(10, width=4), init_from=str(tmp_path / "step1.pt"), calibrate_init_from="none")
    make_trainer(GradientWindows(), betas, max_epochs=1).fit(module, make_loader(), make_loader())
    assert betas.before[0] == network.body[3][3].beta.item()
    assert betas.after[0] != pytest.approx(betas.before[0], rel=0.5)


def test_a_resumed_run_equals_an_uninterrupted_one(classifier, make_trainer, make_loader, tmp_path):
    def fit(epochs, ckpt_path=None, **options):
        torch.manual_seed(0)
        module = classifier()
        keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = make_trainer(GradientWindows(), keep, max_epochs=epochs, enable_checkpointing=True, **options)
        trainer.fit(module, make_loader(), ckpt_path=ckpt_path, weights_only=True)
        return module.state_dict()

    whole = fit(3)
    for step in (2, 4):
        resumed = fit(3, tmp_path / f"step={step}.ckpt")
        assert all(torch.equal(resumed[name], value) for name, value in whole.items()), step


@pytest.mark.parametrize(("name", "value"), [("every_n_epochs", 0), ("width", 0.0)])
def test_refuses_values_out_of_range(name, value):
    with pytest.raises(InputError, match=f"{name}={value}"):
        GradientWindows(**{name: value})


@pytest.mark.parametrize("options", [{"norm": "batch_norm"}, {"norm": "none"}, {"reference": True}])
def test_other_networks_train_as_without_the_callback(classifier, make_trainer, make_loader, caplog, options):
    states = []
    for callbacks in ([GradientWindows()], []):
        torch.manual_seed(0)
        module = classifier(ReActNet18(width=4, **options))
        with caplog.at_level("INFO"):
            make_trainer(*callbacks, max_epochs=2).fit(module, make_loader())
        states.append(module.state_dict())
    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())
    assert caplog.text.count("GradientWindows changes nothing") == 1


SCRIPT = """
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, TensorDataset

from bnfree.backbones import ReActNet18
from bnfree.callbacks import GradientWindows
from bnfree.lightning_modules import ImageClassifier

torch.manual_seed(0)
module = ImageClassifier(ReActNet18(4, width=4), calibration_images=16)
trainer = Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, limit_val_batches=0, logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[GradientWindows()],
)
# Those of the second process are ten times as strong.
images = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(5))
images[1::2] *= 10
trainer.fit(module, DataLoader(TensorDataset(images, torch.arange(32) % 4), 8))
torch.save(module.backbone.state_dict(), f"rank{trainer.global_rank}.pt")
"""


@pytest.mark.slow
def test_two_processes_with_images_of_their_own_go_on_with_the_same_constants(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    run = subprocess.run(
        [sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True, timeout=1200,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(second[name], value) for name, value in first.items())
