import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from torch.optim import SGD, Adam
from torch.utils.data import DataLoader

from bnfree.backbones import ReActNet18
from bnfree.errors import InputError
from bnfree.lightning_modules import ImageClassifier
from bnfree.lightning_modules.modules.learning_rate_scaling import scale_learning_rates


class Rates(Callback):
    """The learning rate of every step taken."""

    def __init__(self):
        self.rates = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        groups = trainer.optimizers[0].param_groups
        assert len({group["lr"] for group in groups}) == 1
        self.rates.append(groups[0]["lr"])


@pytest.fixture
def said(caplog):
    """What the module says about the learning rate."""
    caplog.set_level(logging.INFO, "lightning.pytorch.utilities.rank_zero")
    return lambda: [r.getMessage() for r in caplog.records if "earning rate" in r.getMessage()]


def trainer_of(batch_size=128, world_size=1, accumulated=1, callbacks=()):
    return SimpleNamespace(
        datamodule=SimpleNamespace(batch_size=batch_size), world_size=world_size, callbacks=list(callbacks),
        accumulate_grad_batches=accumulated, ckpt_path=None,
    )  # fmt: skip


def module_of(**options):
    torch.manual_seed(0)
    return ImageClassifier(ReActNet18(num_classes=4, width=4), calibration="none", **options)


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("accumulated", [1, 3])
@pytest.mark.parametrize(("scaling", "exponent"), [("none", 0), ("linear", 1), ("square_root", 0.5)])
def test_rate_follows_the_images_of_a_step(world_size, accumulated, scaling, exponent):
    one, two = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = Adam([{"params": [one]}, {"params": [two], "lr": 2e-3}], lr=5e-4)
    scale_learning_rates(optimizer, trainer_of(128, world_size, accumulated), scaling, base_batch_size=256)
    factor = (128 * world_size * accumulated / 256) ** exponent
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([5e-4 * factor, 2e-3 * factor])


def test_the_schedule_starts_from_the_scaled_rate_which_is_said_once(corners, make_trainer, said):
    rates = Rates()
    trainer = make_trainer(callbacks=[rates], accumulate_grad_batches=2, max_epochs=3)
    module = module_of(optimizer=lambda p: SGD(p, lr=0.1), learning_rate_scaling="linear", base_batch_size=8)
    trainer.fit(module, datamodule=corners)
    # Batches of 16 images, two to a step: 4 times the recipe's 8.
    assert rates.rates[::2] == pytest.approx([0.4 * (1 - k / 6) for k in range(6)])
    assert said() == ["Learning rate 0.1 x 4 = 0.4: linear rule for 32 images per step in place of 8."]


@pytest.mark.parametrize(("batch_size", "hint"), [(1024, False), (1025, True)])
def test_a_large_factor_is_said_to_want_a_warm_up(batch_size, hint, said):
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scale_learning_rates(optimizer, trainer_of(batch_size), "linear", base_batch_size=256)
    (line,) = said()
    assert ("a warm-up is usual" in line) is hint


def test_the_batch_size_of_a_loader_serves_without_a_datamodule(corners, make_trainer):
    rates = Rates()
    module = module_of(optimizer=lambda p: SGD(p, lr=0.1), learning_rate_scaling="square_root", interval="epoch")
    make_trainer(callbacks=[rates]).fit(module, corners.train_dataloader())
    assert rates.rates[0] == pytest.approx(0.1 * (16 / 256) ** 0.5)


def test_an_unknown_batch_size_is_refused(corners, make_trainer):
    batches = DataLoader([tuple(t[:4] for t in corners.dataset.tensors)], batch_size=None)
    with pytest.raises(InputError, match="batch_size=None .* is no integer"):
        make_trainer().fit(module_of(learning_rate_scaling="linear"), batches)
    make_trainer().fit(module_of(), batches)


def test_a_changing_accumulation_is_refused():
    trainer = trainer_of(callbacks=[GradientAccumulationScheduler({0: 2})])
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    with pytest.raises(InputError, match="GradientAccumulationScheduler changes the batch size"):
        scale_learning_rates(optimizer, trainer, "linear", 256)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"learning_rate_scaling": "sqrt"}, "'sqrt' is not known; choose"), ({"base_batch_size": 0}, "base_batch_size=0")],
)
def test_values_out_of_range_are_named(options, sentence):
    with pytest.raises(InputError, match=sentence):
        module_of(**options)


class OneEpoch(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = True


@pytest.mark.parametrize(
    ("before", "after", "rescale", "factors"),
    [
        # 16 images per step, then 32: the root rule wants sqrt(2) and then 2 times the rate for 8.
        ("square_root", "square_root", False, (2**0.5, 2**0.5)),
        ("square_root", "square_root", True, (2**0.5, 2.0)),
        ("none", "linear", False, (1.0, 1.0)),
        ("none", "linear", True, (1.0, 4.0)),
        ("linear", "none", True, (2.0, 1.0)),
    ],
)
def test_a_resumed_run_rescales_only_if_asked(corners, make_trainer, tmp_path, said, before, after, rescale, factors):
    def run(scaling, accumulated, *callbacks, ckpt_path=None, **options):
        rates = Rates()
        checkpoint = ModelCheckpoint(tmp_path, filename="last", enable_version_counter=False)
        trainer = make_trainer(
            max_epochs=4, callbacks=[rates, checkpoint, *callbacks], accumulate_grad_batches=accumulated
        )
        module = module_of(
            optimizer=lambda p: SGD(p, lr=0.1), interval="epoch", base_batch_size=8, learning_rate_scaling=scaling,
            **options,
        )  # fmt: skip
        trainer.fit(module, datamodule=corners, ckpt_path=ckpt_path)
        return rates.rates

    first = run(before, 1, OneEpoch())
    assert first == pytest.approx(4 * [0.1 * factors[0]])
    count = len(said())
    # The rate that the schedule has reached is scaled, and so are those that are to come.
    second = run(after, 2, OneEpoch(), ckpt_path=tmp_path / "last.ckpt", rescale_on_resume=rescale)
    assert second == pytest.approx(4 * [0.1 * factors[1] * 3 / 4])
    assert len(said()) == count + 1
    assert (f"factor {factors[1]:.3g} in place of" in said()[-1]) is rescale
    # Asked once: the factor is in the checkpoint, so the next resumption has nothing to change.
    third = run(after, 2, ckpt_path=tmp_path / "last.ckpt", rescale_on_resume=rescale)
    assert third == pytest.approx([0.1 * factors[1] * part for part in [1 / 2] * 4 + [1 / 4] * 4])
    assert len(said()) == count + 1 + (not rescale)


SCRIPT = """
import sys
import torch
from lightning.pytorch import Trainer

from bnfree.backbones import ReActNet18
from bnfree.datamodules import DigitsDataModule
from bnfree.lightning_modules import ImageClassifier

module = ImageClassifier(
    ReActNet18(10, in_channels=1, width=4), calibration="none", learning_rate_scaling="square_root",
    optimizer=lambda p: torch.optim.Adam(p, lr=1e-3), base_batch_size=16,
)
trainer = Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, limit_train_batches=2, limit_val_batches=1,
    logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    accumulate_grad_batches=2,
)
trainer.fit(module, datamodule=DigitsDataModule(batch_size=16))
rate = trainer.optimizers[0].param_groups[0]["initial_lr"]
torch.save(rate, f"rate{trainer.global_rank}.pt")
"""


@pytest.mark.slow
def test_two_processes_count_twice(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    run = subprocess.run(
        [sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True, timeout=1200,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    rates = [torch.load(tmp_path / f"rate{rank}.pt", weights_only=True) for rank in (0, 1)]
    # 16 images on each of two processes, two batches to a step: 64, four times 16.
    assert rates == pytest.approx([2e-3, 2e-3])
    assert (run.stdout + run.stderr).count("square_root rule for 64 images") == 1
