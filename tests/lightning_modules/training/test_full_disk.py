"""Every file of ours on a full disk: one sentence that says so, exit code 1, nothing that is half written."""

import shutil
from contextlib import contextmanager

import pytest
import torch
from small_data import write_image
from small_digits import OPTIONS, train_digits
from small_disk import small_disk, unfinished

from bnfree.backbones import ReActNet18
from bnfree.datamodules import ImageFolderDataModule
from bnfree.errors import MachineError
from bnfree.tickets import Ticket, save_ticket


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    run = train_digits(tmp_path_factory.mktemp("run") / "run", "--test_after_fit=false")
    return run / "checkpoints" / "last.ckpt"


@contextmanager
def full(path):
    """The sentence about a file, beside which nothing new remains."""
    before = set(path.parent.rglob("*"))
    with pytest.raises(MachineError, match="the disk is full") as caught:
        yield
    assert str(caught.value).startswith(f"'{path}' cannot be written: the disk is full (")
    assert set(path.parent.rglob("*")) == before


@pytest.fixture
def refused(bnfree):
    """Runs a command on a disk of a few bytes, which must fail; returns its sentence."""

    def run(*words, size=2000):
        with small_disk(size):
            code, _, said = bnfree(*words)
        assert code == 1, said
        assert "Traceback" not in said
        (line,) = [line for line in said.splitlines() if line.startswith("bnfree: error: ")]
        assert "the disk is full" in line
        return line

    return run


def test_a_ticket(tmp_path):
    network = ReActNet18(width=4)
    layer = network.body[0][0].convolution
    layer.set_mask(torch.ones_like(layer.weight, dtype=torch.bool))
    ticket = Ticket.of(network, score="magnitude", scope="global", density=1.0)
    save_ticket(ticket, tmp_path / "ticket.pt")
    before = (tmp_path / "ticket.pt").read_bytes()
    with full(tmp_path / "ticket.pt"), small_disk(20_000):
        save_ticket(ticket, tmp_path / "ticket.pt")
    assert (tmp_path / "ticket.pt").read_bytes() == before


@pytest.mark.parametrize(
    "suffix", [".safetensors", *(pytest.param(s, marks=pytest.mark.slow) for s in (".onnx", ".pt2"))]
)
def test_an_exported_network(refused, project, checkpoint, suffix):
    pytest.importorskip("onnx")
    kind = {".safetensors": "packed", ".onnx": "onnx", ".pt2": "torch_export"}[suffix]
    shutil.copy(checkpoint, project / "a.ckpt")
    before = set(project.iterdir())
    line = refused("export", "a.ckpt", f"--format={kind}", f"--output=net{suffix}")
    assert line.startswith(f"bnfree: error: 'net{suffix}' cannot be written: the disk is full (")
    assert set(project.iterdir()) == before


def test_predictions(refused, project, checkpoint):
    line = refused(
        "predict", f"--ckpt_path={checkpoint}", "--run_dir=out", "--trainer.limit_predict_batches=2", size=99
    )
    assert "out/predictions.csv' cannot be written" in line
    assert not list(project.glob("out/*"))


def test_a_report(refused, project, checkpoint):
    shutil.copytree(checkpoint.parents[1], project / "run")
    assert "run/report/" in refused("report", "run", size=50)
    assert unfinished(project) == []


@pytest.mark.parametrize("size", [0, 3000])
def test_a_cache_of_images(tmp_path, size):
    for number in range(4):
        for part in ("train", "test"):
            write_image(tmp_path / "images" / part / str(number % 2) / f"{number}.png", 40, 40, number)
    cache = tmp_path / "cache"
    data = ImageFolderDataModule(
        str(tmp_path / "images"),
        image_size=28,
        val_split=0,
        cache="raw",
        cache_dir=str(cache),
        batch_size=2,
        num_workers=0,
    )
    with small_disk(size), pytest.raises(MachineError, match="cannot be written: the disk is full"):
        data.setup("fit")
    assert unfinished(cache) == []
    data.setup("fit")
    assert len(data.calibration_images(4)) == 4


def test_logits_of_a_teacher(refused, project, checkpoint):
    words = [
        "fit", "--config=quickstart", *OPTIONS, "--model=DistilledClassifier",
        f"--model.teacher.weights={checkpoint}", "--model.logits_cache=logits", "--data.augment=false", "--run_dir=run",
    ]  # fmt: skip
    assert "logits/variant-000.safetensors' cannot be written: the disk is full (" in refused(*words, size=20_000)
    assert list((project / "logits").iterdir()) == []
