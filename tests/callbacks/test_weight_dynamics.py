import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader

from bnfree.backbones import ReActNet18
from bnfree.callbacks import WeightDynamics
from bnfree.errors import InputError

COLUMNS = ["epoch", "layer", "weights", "flipped", "gain"]
UNITS = [f"body.{stage}.{unit}.convolution" for stage in range(4) for unit in range(4)]


def read(path):
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames == COLUMNS
    return rows


def logged(path):
    with path.open(newline="") as file:
        return {int(row["epoch"]): float(row["signs/flipped"]) for row in csv.DictReader(file) if row["signs/flipped"]}


class Recorder(Callback):
    """Signs and gains before the first epoch and after each, without the callback's help."""

    def __init__(self):
        self.signs, self.gains = [], []

    def record(self, network):
        layers = [network.get_submodule(name) for name in UNITS]
        self.signs.append([(layer.effective_weight().detach() >= 0).flatten() for layer in layers])
        gains = [layer.gain for layer in layers]
        self.gains.append([None if gain is None else gain.detach().abs().mean().item() for gain in gains])

    def on_train_start(self, trainer, pl_module):
        self.record(pl_module.backbone)

    def on_train_epoch_end(self, trainer, pl_module):
        self.record(pl_module.backbone)


@pytest.mark.parametrize("options", [{}, {"binary_weights": False}, {"norm": "batch_norm"}])
def test_shares_and_gains_equal_a_count_by_hand(classifier, make_trainer, make_loader, tmp_path, options):
    recorder, logger = Recorder(), CSVLogger(tmp_path, name="", version="")
    trainer = make_trainer(WeightDynamics(), recorder, max_epochs=3, logger=logger)
    trainer.fit(classifier(ReActNet18(width=4, **options)), make_loader(), make_loader())
    rows = read(tmp_path / "weight_dynamics.csv")
    shares = logged(tmp_path / "metrics.csv")
    assert list(shares) == [0, 1, 2]
    for epoch in range(3):
        of_epoch = {row["layer"]: row for row in rows if row["epoch"] == str(epoch)}
        counts = []
        for name, before, after, gain in zip(
            UNITS, recorder.signs[epoch], recorder.signs[epoch + 1], recorder.gains[epoch + 1], strict=True
        ):
            counts.append((int((before != after).sum()), len(before)))
            assert int(of_epoch[name]["weights"]) == len(before)
            assert float(of_epoch[name]["flipped"]) == pytest.approx(counts[-1][0] / counts[-1][1], rel=1e-5)
            if gain is None:
                assert of_epoch[name]["gain"] == ""
            else:
                assert float(of_epoch[name]["gain"]) == pytest.approx(gain, rel=1e-5)
        flipped, weights = (sum(column) for column in zip(*counts, strict=True))
        assert flipped > 0
        assert shares[epoch] == pytest.approx(flipped / weights, rel=1e-6)
        # The stem and the shortcuts stay real: they have gains and no flips.
        assert of_epoch["stem.convolution"]["flipped"] == of_epoch["body.1.0.projection"]["flipped"] == ""
        assert (of_epoch["stem.convolution"]["gain"] == "") == (options.get("norm") == "batch_norm")


def test_masked_weights_do_not_count(classifier, make_trainer, make_loader, tmp_path):
    backbone = ReActNet18(width=4)
    layer = backbone.get_submodule(UNITS[0])
    layer.set_mask(torch.rand(layer.weight.shape) < 0.5)
    survivors = int(layer.mask.sum())

    class Prune(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            # Rewinds and prunes between two epochs, as a lottery ticket does.
            nn.init.normal_(layer.weight)
            mask = layer.mask.clone()
            mask.view(-1)[mask.flatten().nonzero()[0]] = False
            layer.set_mask(mask)

    # No step changes anything: what is left are the changes between the epochs.
    module = classifier(backbone, lambda module: torch.optim.SGD(module.parameters(), lr=0.0))
    make_trainer(WeightDynamics(), Prune(), max_epochs=3).fit(module, make_loader(), make_loader())
    rows = [row for row in read(tmp_path / "weight_dynamics.csv") if row["layer"] == UNITS[0]]
    assert [int(row["weights"]) for row in rows] == [survivors - 1, survivors - 2, survivors - 3]
    assert [float(row["flipped"]) for row in rows] == [0, 0, 0]


@pytest.mark.parametrize(
    "saving",
    [{"every_n_train_steps": 4}, {"every_n_train_steps": 3}, {"save_on_train_epoch_end": False}, {"every_n_epochs": 1}],
    ids=["within an epoch", "after its last step", "after its validation", "at its end"],
)
def test_resumed_run_logs_what_an_uninterrupted_one_logs(classifier, make_trainer, make_loader, tmp_path, saving):
    # Each batch is the same, so that it does not matter where a plain loader starts again.
    data = DataLoader(ConcatDataset([make_loader(4).dataset] * 3), 4)

    def fit(directory, ckpt_path=None):
        torch.manual_seed(1)
        logger = CSVLogger(directory, name="", version="")
        save = ModelCheckpoint(directory / "checkpoints", filename="{step}", save_top_k=-1, **saving)
        trainer = make_trainer(WeightDynamics(), save, logger=logger, max_epochs=3, enable_checkpointing=True)
        trainer.fit(classifier(), data, make_loader(), ckpt_path=ckpt_path, weights_only=True)
        return read(directory / "weight_dynamics.csv"), logged(directory / "metrics.csv")

    rows, shares = fit(tmp_path / "whole")
    first = min((tmp_path / "whole" / "checkpoints").glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[1]))
    resumed_rows, resumed_shares = fit(tmp_path / "resumed", first)
    assert len(resumed_shares) >= 2
    assert resumed_shares == {epoch: shares[epoch] for epoch in resumed_shares}
    assert resumed_rows == [row for row in rows if int(row["epoch"]) in resumed_shares]
    if "every_n_epochs" in saving:
        state = torch.load(first, weights_only=True)["callbacks"]["WeightDynamics"]
        assert state == {"signs": {}}


def test_a_checkpoint_within_an_epoch_holds_a_quarter_byte_for_each_sign(
    classifier, make_trainer, make_loader, tmp_path
):
    save = ModelCheckpoint(tmp_path, filename="middle", every_n_train_steps=1, save_top_k=1)
    trainer = make_trainer(WeightDynamics(), save, enable_checkpointing=True, max_steps=1)
    module = classifier()
    trainer.fit(module, make_loader())
    signs = torch.load(tmp_path / "middle.ckpt", weights_only=True)["callbacks"]["WeightDynamics"]["signs"]
    assert list(signs) == UNITS
    weights = sum(module.backbone.get_submodule(name).weight.numel() for name in UNITS)
    assert sum(packed.numel() * packed.element_size() for packed in signs.values()) == weights / 4


def test_an_epoch_without_a_known_start_has_no_share(classifier, make_trainer, make_loader, tmp_path):
    data = make_loader(12)
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    make_trainer(save, enable_checkpointing=True).fit(classifier(), data)
    trainer = make_trainer(WeightDynamics(), max_epochs=2)
    trainer.fit(classifier(), data, ckpt_path=tmp_path / "step=2.ckpt", weights_only=True)
    rows = [row for row in read(tmp_path / "weight_dynamics.csv") if row["layer"] == UNITS[0]]
    assert [row["flipped"] == "" for row in rows] == [True, False]
    assert all(float(row["gain"]) > 0 for row in rows)


def test_observes_only(classifier, make_trainer, make_loader):
    results = []
    for callbacks in ([], [WeightDynamics()]):
        torch.manual_seed(3)
        module = classifier()
        make_trainer(*callbacks).fit(module, make_loader(), make_loader())
        results.append((module.state_dict(), torch.rand(1)))
    (expected, expected_random), (state, random) = results
    assert torch.equal(random, expected_random)
    assert all(torch.equal(state[key], value) for key, value in expected.items())


def test_what_cannot_be_recorded_is_said(classifier, make_trainer, make_loader):
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    with pytest.raises(InputError, match="backbone=Sequential has no BinaryConv2d"):
        make_trainer(WeightDynamics()).fit(classifier(backbone), make_loader())
    with pytest.raises(InputError, match="filename=''"):
        WeightDynamics(filename="")


SCRIPT = """
import sys
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger

from bnfree.backbones import ReActNet18
from bnfree.callbacks import WeightDynamics
from bnfree.datamodules import DigitsDataModule
from bnfree.lightning_modules import ImageClassifier

processes, directory = int(sys.argv[1]), sys.argv[2]
seed_everything(3)
network = ReActNet18(10, in_channels=1, width=4)
module = ImageClassifier(network, optimizer=lambda p: torch.optim.SGD(p, lr=0.05), calibration_images=32)
trainer = Trainer(
    accelerator="cpu", devices=processes, precision="64-true", strategy="ddp" if processes > 1 else "auto",
    max_epochs=2, limit_train_batches=3, limit_val_batches=1, logger=CSVLogger(directory, name="", version=""),
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[WeightDynamics()],
)
trainer.fit(module, datamodule=DigitsDataModule(batch_size=32 // processes))
assert float(trainer.callback_metrics["signs/flipped"]) > 0
"""


@pytest.mark.slow
def test_two_processes_record_what_one_records(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    results = []
    for processes in (1, 2):
        directory = tmp_path / str(processes)
        run = subprocess.run(
            [sys.executable, "train.py", str(processes), str(directory)], cwd=tmp_path, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}, timeout=1200,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr[-2000:]
        results.append((read(directory / "weight_dynamics.csv"), logged(directory / "metrics.csv")))
    (rows, shares), (rows_of_two, shares_of_two) = results
    assert shares_of_two == pytest.approx(shares, rel=1e-6)
    assert [row["flipped"] for row in rows_of_two] == [row["flipped"] for row in rows]
