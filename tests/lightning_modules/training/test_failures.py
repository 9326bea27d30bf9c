"""What the machine fails at is one sentence, and what has been finished stays."""

import csv
import errno
import os

import pytest
import torch
from small_data import write_image
from small_disk import small_disk, unfinished

from bnfree.callbacks.run_files import write_csv
from bnfree.errors import InputError, MachineError
from bnfree.files import whole_file
from bnfree.lightning_modules import FitSettings, fit
from bnfree.lightning_modules.training.checkpoints import AtomicCheckpointIO
from bnfree.lightning_modules.training.failures import explain_failure
from bnfree.lightning_modules.training.loggers import ContinuedCSVLogger


def test_a_checkpoint_that_does_not_fit_leaves_the_earlier_one(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.ones(3)}}, path)
    with small_disk(10_000), pytest.raises(MachineError) as caught:
        AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.zeros(500_000)}}, path)
    said = str(caught.value)
    assert said.startswith(f"'{path}' cannot be written: the disk is full (")
    assert " free, 2 MB needed); the earlier last.ckpt is kept; free some space" in said
    assert list(tmp_path.iterdir()) == [path]
    assert torch.load(path)["state_dict"]["w"].tolist() == [1, 1, 1]


def test_so_does_every_other_file(tmp_path):
    with small_disk(1000), pytest.raises(MachineError, match=r"table.csv' cannot be written: the disk is full"):
        write_csv(tmp_path / "table.csv", ["a"], [["word" * 1000]])
    with pytest.raises(MachineError, match="disk is full"), whole_file(tmp_path / "quota"):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")
    with pytest.raises(PermissionError), whole_file(tmp_path / "other"):
        raise PermissionError(errno.EACCES, "Permission denied")
    assert list(tmp_path.iterdir()) == []


def test_batch_norm_of_a_single_value_is_a_sentence():
    """As torch says it: a last batch of one image whose feature map has one position left."""
    norm = torch.nn.BatchNorm2d(3)
    with pytest.raises(ValueError, match="more than 1 value") as caught:
        norm(torch.zeros(1, 3, 1, 1))
    said = explain_failure(caught.value, None, None)
    assert isinstance(said, InputError)
    assert str(said).startswith("norm='batch_norm' has no statistics of one value (Expected more than 1 value per ")
    assert str(said).endswith("; take larger images or batches, or another norm.")
    assert explain_failure(ValueError("Expected more"), None, None) is None


def test_a_run_ends_with_a_sentence_and_goes_on_when_there_is_space(bnfree, project):
    words = ["fit", "--config=toy.yaml", "--run_dir=run", "--model.backbone.width=3000", "--trainer.max_epochs=1"]
    assert bnfree(*words)[0] == 0
    last = project / "run" / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    go_on = ["fit", "--run_dir=run", "--ckpt_path=last", "--trainer.max_epochs=2"]
    with small_disk(20_000):
        code, _, said = bnfree(*go_on)
    assert code == 1
    assert said.splitlines()[-1].startswith("bnfree: error: '")
    assert "checkpoints/" in said.splitlines()[-1]
    assert ".ckpt' cannot be written: the disk is full (" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert unfinished(project) == []
    assert last.read_bytes() == before
    assert bnfree(*go_on)[0] == 0
    assert torch.load(last, weights_only=True)["global_step"] == 8


def test_a_log_that_cannot_be_written(bnfree, project, monkeypatch):
    def save(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ContinuedCSVLogger, "save", save)
    code, _, said = bnfree("fit", "--config=toy.yaml", "--run_dir=run")
    assert code == 1
    assert said.splitlines()[-1].startswith("bnfree: error: 'run' cannot be written: the disk is full (")
    with pytest.raises(MachineError, match="the disk is full"):
        fit(FitSettings("toy.yaml", run_dir="other"))


FAILING = """
import torch
from lightning.pytorch import Callback


class Failing(Callback):
    def __init__(self, kind: str):
        self.kind = kind

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.kind == "host":
            raise MemoryError
        if self.kind == "device":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ...")
        if self.kind == "allocator":
            torch.empty(2**60)
        if self.kind == "worker":
            raise RuntimeError("DataLoader worker (pid 4242) is killed by signal: Killed. ")
        if self.kind == "folder":
            open("gone/image.png")
"""


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("host", "out of memory (the machine has no more); lower --data.batch_size (now 8), with "),
        ("device", "out of memory (CUDA out of memory); lower --data.batch_size (now 8), with "),
        ("allocator", "out of memory ("),
        ("worker", "a process that reads images has been killed (Killed), as happens without enough memory, or "),
        ("folder", "'gone/image.png': No such file or directory; "),
    ],
)
def test_what_else_a_machine_can_lack(bnfree, project, kind, sentence):
    (project / f"failing_{kind}.py").write_text(FAILING)
    code, _, said = bnfree(
        "fit", "--config=toy.yaml", f"--trainer.callbacks=failing_{kind}.Failing", f"--trainer.callbacks.kind={kind}"
    )
    assert code == 1
    assert said.splitlines()[-1].startswith(f"bnfree: error: {sentence}")
    assert "Traceback" not in said


GARBLING = """
from pathlib import Path
from lightning.pytorch import Callback


class Garbling(Callback):
    def __init__(self, remove: bool = False):
        self.remove = remove

    def on_train_epoch_end(self, trainer, pl_module):
        for path in Path("images/train").rglob("*.png"):
            path.unlink() if self.remove else path.write_bytes(path.read_bytes()[:100])
"""


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("remove", [True, False])
@pytest.mark.slow
def test_images_that_vanish_or_break_while_training(bnfree, project, workers, remove):
    for part in ("train", "val"):
        for label in ("cat", "dog"):
            for number in range(4):
                write_image(project / "images" / part / label / f"{number}.png", 40, 40, number)
    (project / "garbling.py").write_text(GARBLING)
    code, _, said = bnfree(
        "fit", "--model=ImageClassifier", "--model.backbone=ReActNet18", "--model.backbone.num_classes=2",
        "--model.backbone.width=2", "--model.calibration_images=4", "--model.optimizer=torch.optim.SGD",
        "--model.optimizer.lr=0.01", "--data=ImageFolderDataModule", "--data.data_dir=images", "--data.image_size=32",
        "--data.batch_size=4", f"--data.num_workers={workers}", "--trainer.max_epochs=3", "--trainer.accelerator=cpu",
        "--run_dir=run", "--trainer.callbacks=garbling.Garbling", f"--trainer.callbacks.remove={str(remove).lower()}",
    )  # fmt: skip
    last = said.splitlines()[-1]
    assert code in (1, 2)
    assert last.startswith("bnfree: error: ")
    assert "images/train/" in last
    assert ".png" in last
    assert "Traceback" not in last
    assert (project / "run" / "checkpoints" / "last.ckpt").is_file()
    with (project / "run" / "metrics.csv").open() as file:
        assert any(row["train/loss"] for row in csv.DictReader(file))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_has_become_read_only(bnfree, project):
    assert bnfree("fit", "--config=toy.yaml", "--run_dir=run", "--trainer.max_epochs=1")[0] == 0
    (project / "run" / "checkpoints").chmod(0o500)
    code, _, said = bnfree("fit", "--run_dir=run", "--ckpt_path=last", "--trainer.max_epochs=2")
    (project / "run" / "checkpoints").chmod(0o700)
    assert code == 1
    assert "Permission denied" in said.splitlines()[-1]
