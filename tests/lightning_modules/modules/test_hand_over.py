"""What is measured anew before initial weights are trained on, and what is not."""

import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from bnfree.backbones import ReActNet18
from bnfree.calibration import calibrate, calibrate_gains
from bnfree.errors import InputError
from bnfree.lightning_modules import DistilledClassifier, ImageClassifier
from bnfree.lightning_modules.modules.hand_over import Inputs
from bnfree.tickets import Ticket, apply, prune, save_ticket


def network(seed=0, **options):
    torch.manual_seed(seed)
    return ReActNet18(**{"num_classes": 4, "width": 4, **options})


class Start(Callback):
    """The weights before the first step of a fit, in whatever step it begins."""

    def __init__(self):
        self.weights = None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.weights is None:
            self.weights = copy.deepcopy(pl_module.backbone.state_dict())


class Scaled(LightningDataModule):
    """The images of another data module, multiplied."""

    num_classes, image_shape = 4, (3, 8, 8)

    def __init__(self, data, factor):
        super().__init__()
        images, labels = data.dataset.tensors
        self.dataset = TensorDataset(images * factor, labels)

    def train_dataloader(self):
        return DataLoader(self.dataset, 16)

    val_dataloader = test_dataloader = train_dataloader


@pytest.fixture
def fit(make_trainer):
    def fit(module, data, **options):
        """A fit, and the weights that it began with."""
        start, ckpt_path = Start(), options.pop("ckpt_path", None)
        trainer = make_trainer(callbacks=[start, *options.pop("callbacks", [])], **options)
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
        return trainer, start.weights

    return fit


@pytest.fixture
def step1(fit, corners, tmp_path):
    """The checkpoint of a training with real weights, and its network."""
    module = ImageClassifier(network(binary_weights=False), lambda p: SGD(p, lr=0.05))
    trainer, _ = fit(module, corners, max_epochs=2)
    trainer.save_checkpoint(tmp_path / "step1.ckpt")
    return str(tmp_path / "step1.ckpt"), module.backbone


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr("bnfree.lightning_modules.modules.image_classifier.rank_zero_info", lines.append)
    return lines


@pytest.mark.parametrize("kind", [ImageClassifier, DistilledClassifier])
@pytest.mark.parametrize("fast", [[], ["bf16_backward"]])
def test_gain_at_the_hand_over_is_that_of_the_pure_function(step1, fit, corners, said, kind, fast):
    path, trained = step1
    expected = network(1)
    expected.load_state_dict(trained.state_dict())
    factors = torch.cat(list(calibrate_gains(expected, corners.dataset.tensors[0][:48]).values()))
    assert 1.05 < factors.mean() < 1.6
    teacher = {"teacher": network(2)} if kind is DistilledClassifier else {}
    options = {"init_from": path, "calibrate_init_from": "gain", "calibration_images": 48}
    _, start = fit(kind(network(1, fast=fast), **options, **teacher), corners)
    assert same(start, expected.state_dict())
    lines = [line for line in said if "Calibrated" in line]
    assert len(lines) == 1
    assert "240 filters on 48 training images, since calibrate_init_from=gain: times" in lines[0]


@pytest.mark.parametrize("asked", ["auto", "none"])
def test_by_default_the_same_images_leave_the_weights_as_they_are(step1, fit, corners, said, asked):
    path, trained = step1
    _, start = fit(ImageClassifier(network(1), init_from=path, calibrate_init_from=asked), corners)
    assert same(start, trained.state_dict())
    assert not any("Calibrated" in line for line in said)


@pytest.mark.parametrize("factor", [8, 1 / 8])
def test_images_of_other_strength_are_calibrated_on(step1, fit, corners, said, factor):
    path, trained = step1
    data = Scaled(corners, factor)
    expected = network(1)
    expected.load_state_dict(trained.state_dict())
    with torch.no_grad():
        logits = expected(corners.dataset.tensors[0])
    trainer, start = fit(ImageClassifier(network(1), init_from=path), data)
    expected.load_state_dict(start)
    with torch.no_grad():
        # What it made of the images as they were.
        torch.testing.assert_close(expected(data.dataset.tensors[0]), logits, rtol=1e-3, atol=1e-3)
    changed = {name for name, value in start.items() if not torch.equal(value, trained.state_dict()[name])}
    assert changed == {"stem.convolution.gain"}
    torch.testing.assert_close(start["stem.convolution.gain"] * factor, trained.stem.convolution.gain.detach())
    assert any("training images, since the images are of other strength (standard deviation" in line for line in said)
    # All of it where one number does not do.
    apart = Scaled(corners, factor * torch.tensor([1.0, 1.0, 3.0]).view(3, 1, 1))
    expected.load_state_dict(trained.state_dict())
    calibrate(expected, apart.dataset.tensors[0], full=True)
    _, start = fit(ImageClassifier(network(1), init_from=path), apart)
    assert same(start, expected.state_dict())
    # Nobody is told otherwise by the checkpoint that this run leaves.
    trainer.save_checkpoint(Path(path).with_name("step2.ckpt"))
    for data_after, unchanged in ((data, True), (corners, False)):
        module = ImageClassifier(network(2), init_from=str(Path(path).with_name("step2.ckpt")))
        _, begun = fit(module, data_after)
        assert same(begun, trainer.lightning_module.backbone.state_dict()) is unchanged
    # Said to be none, it is none.
    for options in ({"calibrate_init_from": "none"}, {"calibration": "none"}):
        _, start = fit(ImageClassifier(network(1), init_from=path, **options), data)
        assert same(start, trained.state_dict())


def test_gain_leaves_weights_alone_that_were_binary_or_still_are_real(step1, fit, corners, tmp_path):
    path, trained = step1
    options = {"init_from": path, "calibrate_init_from": "gain"}
    _, start = fit(ImageClassifier(network(1, binary_weights=False), **options), corners)
    assert same(start, trained.state_dict())
    trainer, _ = fit(ImageClassifier(network(1), **options), corners)
    trainer.save_checkpoint(tmp_path / "step2.ckpt")
    options["init_from"] = str(tmp_path / "step2.ckpt")
    _, start = fit(ImageClassifier(network(2), **options), corners)
    assert same(start, trainer.lightning_module.backbone.state_dict())


@pytest.mark.parametrize("asked", ["gain", "full"])
def test_a_resumed_run_does_not_calibrate_again(step1, fit, corners, tmp_path, asked):
    def run(name, **options):
        module = ImageClassifier(network(1), lambda p: SGD(p, lr=0.05), init_from=step1[0], calibrate_init_from=asked)
        checkpoint = ModelCheckpoint(tmp_path / name, monitor=None, filename="{step}", save_top_k=-1)
        fit(module, corners, callbacks=[checkpoint], max_epochs=2, **options)
        return module

    whole = run("whole")
    resumed = run("resumed", ckpt_path=str(tmp_path / "whole" / "step=4.ckpt"))
    assert same(whole.backbone.state_dict(), resumed.backbone.state_dict())


def test_a_ticket_starts_as_it_was_rewound_unless_it_is_asked_for(fit, corners, tmp_path):
    found = network()
    calibrate(found, corners.dataset.tensors[0], full=True)
    apply(found, prune(found, 0.3))
    save_ticket(Ticket.of(found, score="standardized", scope="global", density=0.3), tmp_path / "ticket.pt")
    data = Scaled(corners, 8)
    for asked, unchanged in (("auto", True), ("full", False)):
        module = ImageClassifier(network(1), init_from=str(tmp_path / "ticket.pt"), calibrate_init_from=asked)
        _, start = fit(module, data)
        assert same(start, found.state_dict()) is unchanged, asked


def test_a_plain_state_dict_says_nothing_and_is_kept(step1, fit, corners, tmp_path):
    torch.save(step1[1].state_dict(), tmp_path / "weights.pt")
    options = {"init_from": str(tmp_path / "weights.pt")}
    _, start = fit(ImageClassifier(network(1), **options), Scaled(corners, 8))
    assert same(start, step1[1].state_dict())
    with pytest.raises(InputError, match="calibrate_init_from='input' needs an init_from that says how strong"):
        fit(ImageClassifier(network(1), calibrate_init_from="input", **options), corners)


def test_a_checkpoint_from_before_it_said_so_has_seen_normalised_images(step1, fit, corners, tmp_path):
    content = torch.load(step1[0], weights_only=True)
    del content["meaning_of_weights"]
    torch.save({**content, "datamodule_hyper_parameters": {}}, tmp_path / "earlier.ckpt")
    _, start = fit(ImageClassifier(network(1), init_from=str(tmp_path / "earlier.ckpt")), Scaled(corners, 8))
    strength = Inputs.normalised(3).strength(Inputs.of(8 * corners.dataset.tensors[0]))
    assert 8 < strength < 12
    torch.testing.assert_close(start["stem.convolution.gain"] * strength, step1[1].stem.convolution.gain.detach())


def test_fewer_images_are_used_where_there_are_fewer(fit, said):
    from bnfree.datamodules import DigitsDataModule

    module = ImageClassifier(network(num_classes=10, in_channels=1), calibration_images=256)
    fit(module, DigitsDataModule(limit_train=70))
    assert any("on 70 training images: beta" in line for line in said)


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ((0.0, 1.0), None), ((0.4, 1.0), None), ((0.0, 1.45), None), ((0.0, 0.7), None),
        ((0.6, 1.0), "other strength"), ((0.0, 0.6), "other strength"),
        ((0.0, 1.6), r"\(standard deviation 1.6 in place of 1\)"),
    ],
)  # fmt: skip
def test_what_counts_as_another_strength(now, words):
    torch.manual_seed(0)
    noise = torch.randn(16, 2, 32, 32).double()
    noise = (noise - noise.mean((0, 2, 3), keepdim=True)) / noise.std((0, 2, 3), correction=0, keepdim=True)
    before, after = Inputs.of(noise), Inputs.of(noise * torch.tensor([1.0, now[1]]).view(2, 1, 1) + now[0])
    assert before.std == pytest.approx((1, 1))
    found = before.difference(after)
    assert found is None if words is None else re.search(words, found)
    assert before.difference(Inputs.of(noise[:, :1])) == "the images have other channels"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"calibrate_init_from": "some"}, "calibrate_init_from='some' is not known"),
        (
            {"recalibrate": True, "calibrate_init_from": "gain"},
            "recalibrate=True contradicts calibrate_init_from='gain'",
        ),
        ({"replace_head": True}, "replace_head=True has no weights"),
        ({"freeze": "head"}, "freeze='head' is not known"),
    ],
)
def test_options_that_contradict_each_other(options, words):
    with pytest.raises(InputError, match=words):
        ImageClassifier(network(), **options)


SCRIPT = """
import sys
import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader, TensorDataset

from bnfree.backbones import ReActNet18
from bnfree.lightning_modules import ImageClassifier

class Start(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        torch.save(pl_module.backbone.state_dict(), f"start{trainer.global_rank}.pt")

module = ImageClassifier(
    ReActNet18(4, width=4), optimizer=lambda p: torch.optim.SGD(p, lr=0.0), init_from="step1.ckpt",
    calibrate_init_from=sys.argv[1], calibration_images=16,
)
trainer = Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_steps=1, limit_val_batches=0, logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[Start()],
)
images = 3 * torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(5))
trainer.fit(module, DataLoader(TensorDataset(images, torch.arange(64) % 4), 8))
"""


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["gain", "auto"])
def test_two_processes_with_images_of_their_own_start_from_the_same_constants(step1, tmp_path, asked):
    (tmp_path / "train.py").write_text(SCRIPT)
    run = subprocess.run(
        [sys.executable, "train.py", asked], cwd=tmp_path, capture_output=True, text=True, timeout=1200,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    starts = [torch.load(tmp_path / f"start{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert same(*starts)
    assert not same(starts[0], step1[1].state_dict())
    assert (run.stdout + run.stderr).count("on 16 training images, since") == 1
