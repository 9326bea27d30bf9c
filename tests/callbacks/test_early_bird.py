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
from torch.utils.data import ConcatDataset, DataLoader

from bnfree.backbones import ReActNet18
from bnfree.callbacks import EarlyBird
from bnfree.errors import InputError
from bnfree.tickets import checksum, current_masks, load_ticket, prune, take_snapshot


class Recorder(Callback):
    """The masks after each epoch and the weights before each step, without the callback's help."""

    def __init__(self, **options):
        self.options = options
        self.masks, self.weights = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.weights.append(take_snapshot(pl_module.backbone))

    def on_train_epoch_end(self, trainer, pl_module):
        self.masks.append(prune(pl_module.backbone, **self.options))

    def distances(self, epoch, window):
        newest = torch.cat([mask.flatten() for mask in self.masks[epoch].values()])
        earlier = [torch.cat([m.flatten() for m in masks.values()]) for masks in self.masks[:epoch][-window + 1 :]]
        return [(newest != mask).double().mean().item() for mask in earlier]


def adam(lr):
    return lambda module: torch.optim.Adam(module.parameters(), lr=lr)


def logged(path):
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("ticket/mask_distance")]
    return {int(row["epoch"]): float(row["ticket/mask_distance"]) for row in rows}


@pytest.fixture
def fit(classifier, make_trainer, make_loader, tmp_path):
    def fit(callback, *callbacks, directory=tmp_path, lr=1e-3, seed=0, ckpt_path=None, **options):
        torch.manual_seed(seed)
        module = classifier(make_optimizer=adam(lr))
        # Each batch is the same, so that it does not matter where a plain loader starts again.
        data = DataLoader(ConcatDataset([make_loader(4).dataset] * 2), 4)
        logger = CSVLogger(directory, name="", version="")
        options = {"max_epochs": 12, "logger": logger, "default_root_dir": directory, **options}
        trainer = make_trainer(callback, *callbacks, **options)
        trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
        return trainer, module

    return fit


def test_stops_when_the_masks_of_the_window_are_close(fit, tmp_path):
    recorder = Recorder(density=0.3, score="standardized", scope="global")
    trainer, module = fit(EarlyBird(0.3, window=3, tolerance=0.025), recorder, lr=0.005)
    epochs = len(recorder.masks)
    largest = [max(recorder.distances(epoch, 3), default=None) for epoch in range(epochs)]
    assert 3 < epochs < 12
    assert largest[-1] < 0.025
    assert all(distance >= 0.025 for distance in largest[2:-1])
    assert logged(tmp_path / "metrics.csv") == pytest.approx(dict(list(enumerate(largest))[1:]), rel=1e-5)
    assert trainer.current_epoch == epochs
    # Nothing is pruned in the network.
    assert all(mask.all() for mask in current_masks(module.backbone).values())
    ticket = load_ticket(tmp_path / "ticket.pt")
    assert ticket.checksum == checksum(recorder.masks[-1])
    assert ticket.details["epochs"] == epochs
    assert max(ticket.details["distances"]) == largest[-1]
    for state, expected in ((ticket.rewind, recorder.weights[0]), (ticket.state_dict, take_snapshot(module.backbone))):
        assert all(torch.equal(state[name], value) for name, value in expected.items())
    network = ReActNet18(width=4)
    network.load_state_dict(ticket.start())
    assert network.body[0][0].convolution.mask is not None


@pytest.mark.parametrize(("point", "step"), [("3it", 3), ("2ep", 4), ("10%", 2), (None, None)])
def test_ticket_starts_from_the_weights_of_the_rewind_point(fit, tmp_path, point, step):
    recorder = Recorder(density=0.5, scope="layer")
    fit(EarlyBird(0.5, scope="layer", window=2, tolerance=0.4, rewind_point=point), recorder)
    ticket = load_ticket(tmp_path / "ticket.pt")
    if step is None:
        assert ticket.rewind is None
        return
    assert all(torch.equal(ticket.rewind[name], value) for name, value in recorder.weights[step].items())
    assert any(not torch.equal(recorder.weights[0][name], value) for name, value in ticket.rewind.items())


def test_waits_for_a_rewind_point_behind_the_moment_of_settling(fit, tmp_path):
    recorder = Recorder(density=0.5)
    fit(EarlyBird(0.5, window=2, tolerance=0.49, rewind_point="9it"), recorder)
    assert len(recorder.masks) == 5
    ticket = load_ticket(tmp_path / "ticket.pt")
    assert all(torch.equal(ticket.rewind[name], value) for name, value in recorder.weights[9].items())


def test_a_run_whose_mask_does_not_settle_ends_without_a_ticket(fit, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("bnfree.callbacks.early_bird.rank_zero_info", said.append)
    trainer, _ = fit(EarlyBird(0.5, tolerance=0.001), max_epochs=3, lr=0.05)
    assert trainer.current_epoch == 3
    assert not (tmp_path / "ticket.pt").exists()
    assert len(said) == 1
    assert "of density 0.5 has not settled (distance 0." in said[0]
    assert "among 3 masks, wanted: below 0.001 among 5), so there is no ticket" in said[0]


@pytest.mark.parametrize("saving", [{"every_n_train_steps": 3}, {"every_n_train_steps": 4}, {"every_n_epochs": 2}])
def test_resumed_run_finds_the_ticket_of_an_uninterrupted_one(fit, tmp_path, saving):
    def run(directory, seed, ckpt_path=None):
        save = ModelCheckpoint(directory, filename="{step}", save_top_k=-1, **saving)
        callback = EarlyBird(0.3, window=4, tolerance=0.03)
        trainer, _ = fit(callback, save, directory=directory, seed=seed, ckpt_path=ckpt_path, enable_checkpointing=True)
        return trainer.current_epoch, load_ticket(directory / "ticket.pt"), logged(directory / "metrics.csv")

    epochs, ticket, distances = run(tmp_path / "whole", 0)
    first = min((tmp_path / "whole").glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[1]))
    resumed_epochs, resumed, resumed_distances = run(tmp_path / "resumed", 1, first)
    assert resumed_epochs == epochs
    assert resumed.checksum == ticket.checksum
    assert all(torch.equal(resumed.start()[name], value) for name, value in ticket.start().items())
    assert resumed_distances == {epoch: distances[epoch] for epoch in resumed_distances}


def test_a_run_that_has_found_its_ticket_stays_stopped(fit, tmp_path):
    save = ModelCheckpoint(tmp_path, filename="last")
    trainer, _ = fit(EarlyBird(0.5, window=2, tolerance=0.4), save, enable_checkpointing=True)
    steps = trainer.global_step
    trainer, _ = fit(
        EarlyBird(0.5, window=2, tolerance=0.4), directory=tmp_path / "on", ckpt_path=tmp_path / "last.ckpt"
    )
    assert trainer.global_step == steps
    with pytest.raises(InputError, match=r"density=0.4 of EarlyBird was 0.5 when the checkpoint"):
        fit(EarlyBird(0.4, window=2, tolerance=0.4), directory=tmp_path / "other", ckpt_path=tmp_path / "last.ckpt")


def test_mistakes_are_said(fit):
    for options, message in (
        ({"density": 0}, "density=0 must be above 0"),
        ({"density": 0.05}, r"tolerance=0.1 says nothing at density=0.05: two unrelated masks differ in 0.095"),
        ({"density": 0.5, "window": 1}, "window=1 must be at least 2"),
        ({"density": 0.5, "score": "flip"}, "score='flip' needs more than the weights"),
        ({"density": 0.5, "score": "size"}, "score='size' is not known"),
        ({"density": 0.5, "scope": "network"}, "scope='network' is not known"),
        ({"density": 0.5, "rewind_point": "late"}, "rewind_point='late' is not known"),
        ({"density": 0.5, "filename": ""}, "filename=''"),
    ):
        with pytest.raises(InputError, match=message):
            EarlyBird(**options)
    with pytest.raises(InputError, match=r"density=0.005 is below 0\.\d+, what min_per_filter=1"):
        fit(EarlyBird(0.005, tolerance=0.001))
    with pytest.raises(InputError, match="rewind_point=100it does not lie before the end"):
        fit(EarlyBird(0.5, rewind_point="100it"))


SCRIPT = """
import sys
import torch
from lightning.pytorch import Trainer, seed_everything

from bnfree.backbones import ReActNet18
from bnfree.callbacks import EarlyBird
from bnfree.datamodules import DigitsDataModule
from bnfree.lightning_modules import ImageClassifier

processes, directory = int(sys.argv[1]), sys.argv[2]
seed_everything(3)
network = ReActNet18(10, in_channels=1, width=4)
module = ImageClassifier(network, optimizer=lambda p: torch.optim.SGD(p, lr=0.02), calibration_images=32)
callback = EarlyBird(0.5, window=3, tolerance=0.2)
trainer = Trainer(
    accelerator="cpu", devices=processes, precision="64-true", strategy="ddp" if processes > 1 else "auto",
    max_epochs=6, limit_train_batches=2, limit_val_batches=1, default_root_dir=directory, logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[callback],
)
trainer.fit(module, datamodule=DigitsDataModule(batch_size=32 // processes))
with open(f"{directory}/rank{trainer.global_rank}", "w") as file:
    file.write(f"{trainer.current_epoch} {callback.history.distances}")
"""


@pytest.mark.slow
def test_two_processes_stop_together_with_the_ticket_of_one(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    found = {}
    for processes in (1, 2):
        directory = tmp_path / str(processes)
        directory.mkdir()
        run = subprocess.run(
            [sys.executable, "train.py", str(processes), str(directory)], cwd=tmp_path, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}, timeout=1200,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr[-2000:]
        said = {(directory / f"rank{rank}").read_text() for rank in range(processes)}
        assert len(said) == 1
        found[processes] = (said.pop(), load_ticket(directory / "ticket.pt").checksum)
    assert found[1] == found[2]
    assert int(found[1][0].split()[0]) < 6
