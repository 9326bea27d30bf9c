"""Every schedule follows its closed form, also where a run goes on with another length, batch size or rate."""

import math
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.optim import SGD, lr_scheduler

from bnfree.backbones import ReActNet18
from bnfree.datamodules import DigitsDataModule
from bnfree.errors import InputError
from bnfree.lightning_modules import ImageClassifier

RATE = 5e-3
# One entry for each class of torch that a config can give: its arguments, and the rate in step k of n.
CLOSED_FORMS = {
    "CosineAnnealingLR": ({}, lambda k, n: (1 + math.cos(math.pi * k / n)) / 2),
    "PolynomialLR": ({"power": 2.0}, lambda k, n: (1 - k / n) ** 2),
    "LinearLR": ({"start_factor": 1.0, "end_factor": 0.1}, lambda k, n: 1 - 0.9 * k / n),
    "ConstantLR": ({"factor": 0.5, "total_iters": 3}, lambda k, n: 0.5 if k < 3 else 1),
    "ExponentialLR": ({"gamma": 0.95}, lambda k, n: 0.95**k),
    "StepLR": ({"step_size": 4, "gamma": 0.5}, lambda k, n: 0.5 ** (k // 4)),
    "MultiStepLR": ({"milestones": [3, 12], "gamma": 0.1}, lambda k, n: 0.1 ** ((k >= 3) + (k >= 12))),
    "CosineAnnealingWarmRestarts": ({"T_0": 6}, lambda k, n: (1 + math.cos(math.pi * (k % 6) / 6)) / 2),
    "LambdaLR": ({"lr_lambda": lambda k: 1 / (k + 1)}, lambda k, n: 1 / (k + 1)),
    "MultiplicativeLR": ({"lr_lambda": lambda k: 0.9}, lambda k, n: 0.9**k),
    "CyclicLR": (
        {"base_lr": RATE, "max_lr": 2 * RATE, "step_size_up": 4, "cycle_momentum": False},
        lambda k, n: 1 + (k % 8 if k % 8 <= 4 else 8 - k % 8) / 4,
    ),
    "OneCycleLR": ({"max_lr": RATE, "pct_start": 0.0001, "cycle_momentum": False, "final_div_factor": 1e4}, None),
}
OF_THE_WHOLE_RUN = ["LinearDecay", "CosineAnnealingLR", "PolynomialLR", "LinearLR", "OneCycleLR"]


class Recorder(Callback):
    """The rate of every optimizer step, and the images of every batch."""

    def __init__(self, stop_after=None):
        self.rates, self.images, self.stop_after = [], [], stop_after

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.images.append((trainer.current_epoch, sorted(trainer.datamodule.positions.tolist())))
        if self.stop_after is not None and trainer.global_step >= self.stop_after:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def run(tmp_path, epochs, schedule, resume=None, batch=64, accumulate=1, stop_after=None, max_steps=-1, **options):
    recorder = Recorder(stop_after)
    recorder.path = tmp_path / "stopped.ckpt"
    torch.manual_seed(0)
    lr = options.pop("lr", RATE)
    factory = {} if schedule == "default" else {"lr_scheduler": schedule}
    module = ImageClassifier(
        ReActNet18(num_classes=10, in_channels=1, width=4), optimizer=lambda p: SGD(p, lr=lr), calibration="none",
        **factory, **options,
    )  # fmt: skip
    trainer = Trainer(
        accelerator="cpu", max_epochs=epochs, max_steps=max_steps, accumulate_grad_batches=accumulate,
        callbacks=[recorder], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, datamodule=DigitsDataModule(batch_size=batch, limit_train=320), ckpt_path=resume)
    if stop_after is None:
        trainer.save_checkpoint(recorder.path)
    return recorder


def torch_rates(name, arguments, steps):
    """The rates of torch's class alone."""
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=RATE)
    schedule = getattr(lr_scheduler, name)(optimizer, **arguments)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_every_class_of_torch_is_tried_here():
    classes = {
        n for n, c in vars(lr_scheduler).items() if isinstance(c, type) and issubclass(c, lr_scheduler.LRScheduler)
    }
    others = {"LRScheduler", "_LRScheduler", "SequentialLR", "ChainedScheduler", "ReduceLROnPlateau", "SWALR"}
    assert classes - others == set(CLOSED_FORMS)


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_each_class_follows_its_closed_form(tmp_path, name):
    arguments, form = CLOSED_FORMS[name]
    rates = run(tmp_path, 4, partial(getattr(lr_scheduler, name), **arguments)).rates
    assert len(rates) == 20
    if form is None:
        assert rates == pytest.approx(torch_rates(name, {**arguments, "total_steps": 20}, 20), rel=1e-9)
    else:
        assert rates == pytest.approx([RATE * form(k, 20) for k in range(20)], rel=1e-6, abs=1e-12)


def test_no_schedule_is_a_constant_rate(tmp_path):
    assert run(tmp_path, 2, None).rates == [RATE] * 10


def test_a_length_of_ones_own_stays(tmp_path):
    rates = run(tmp_path, 2, partial(lr_scheduler.CosineAnnealingLR, T_max=100)).rates
    assert rates[-1] == pytest.approx(RATE * (1 + math.cos(math.pi * 9 / 100)) / 2)


def test_a_plateau_watches_validation():
    module = ImageClassifier(ReActNet18(width=4), lr_scheduler=partial(lr_scheduler.ReduceLROnPlateau, mode="max"))
    module._trainer = type("T", (), {"estimated_stepping_batches": 5, "max_epochs": 1})()
    config = module.configure_optimizers()["lr_scheduler"]
    assert (config["monitor"], config["interval"]) == ("val/acc", "epoch")


@pytest.mark.parametrize(
    ("schedule", "sentence"),
    [
        (lr_scheduler.ExponentialLR, "ExponentialLR needs gamma; give it with --model.lr_scheduler.gamma=VALUE"),
        (lr_scheduler.SequentialLR, "SequentialLR is made of schedules that hold their optimizer already"),
        (lr_scheduler.OneCycleLR, "OneCycleLR needs max_lr"),
    ],
)
def test_what_is_missing_is_named_before_anything_runs(schedule, sentence):
    with pytest.raises(InputError, match=sentence.replace("(", r"\(")):
        ImageClassifier(ReActNet18(width=4), lr_scheduler=schedule)


def schedule_named(name):
    if name == "LinearDecay":
        return "default", lambda k, n: 1 - k / n
    arguments, form = CLOSED_FORMS[name]
    return partial(getattr(lr_scheduler, name), **arguments), form


@pytest.mark.parametrize("name", [*OF_THE_WHOLE_RUN, "ExponentialLR", "StepLR"])
def test_a_longer_run_goes_on_with_the_schedule_of_its_own_length(tmp_path, name):
    schedule, _ = schedule_named(name)
    run(tmp_path, 2, schedule)
    whole = run(tmp_path / "whole", 4, schedule).rates
    assert run(tmp_path, 4, schedule, resume=tmp_path / "stopped.ckpt").rates == pytest.approx(whole[10:], rel=1e-9)


def test_the_first_steps_of_a_longer_cosine(tmp_path):
    schedule, _ = schedule_named("CosineAnnealingLR")
    run(tmp_path, 2, schedule)
    rates = run(tmp_path, 4, schedule, resume=tmp_path / "stopped.ckpt").rates
    assert rates[0] == pytest.approx(0.0025)
    assert rates[-1] == pytest.approx(3.08e-5, rel=1e-3)


def test_the_first_epoch_of_a_longer_run_by_epochs(tmp_path):
    run(tmp_path, 2, "default", interval="epoch")
    rates = run(tmp_path, 4, "default", resume=tmp_path / "stopped.ckpt", interval="epoch").rates
    assert rates == pytest.approx([RATE / 2] * 5 + [RATE / 4] * 5)


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_THE_WHOLE_RUN)
@pytest.mark.parametrize(("batch", "accumulate"), [(32, 1), (64, 2), (16, 3), (160, 1)])
def test_other_steps_per_epoch_take_up_the_same_share_of_the_run(tmp_path, name, batch, accumulate):
    schedule, _ = schedule_named(name)
    whole = run(tmp_path / "whole", 8, schedule).rates

    class Half(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = trainer.current_epoch == 3

    first = Recorder()
    first.path = tmp_path / "stopped.ckpt"
    module = ImageClassifier(
        ReActNet18(num_classes=10, in_channels=1, width=4), optimizer=lambda p: SGD(p, lr=RATE), calibration="none",
        **({} if schedule == "default" else {"lr_scheduler": schedule}),
    )  # fmt: skip
    trainer = Trainer(
        accelerator="cpu", max_epochs=8, callbacks=[first, Half()], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, datamodule=DigitsDataModule(batch_size=64, limit_train=320))
    trainer.save_checkpoint(first.path)
    rest = run(tmp_path, 8, schedule, resume=first.path, batch=batch, accumulate=accumulate).rates
    steps = 4 * math.ceil(320 // batch / accumulate)
    assert len(rest) == steps
    # It starts where the old one stopped, never rises, and ends as near to its end as one of its steps.
    assert rest[0] <= whole[19]
    assert rest == sorted(rest, reverse=True)
    form, n = schedule_named(name)[1], 2 * steps
    if form is None:
        expected = torch_rates(name, {**CLOSED_FORMS[name][0], "total_steps": n}, n)[steps:]
    else:
        assert rest[0] == pytest.approx(whole[20], rel=1e-9)
        expected = [RATE * form(k, n) for k in range(steps, n)]
    assert rest == pytest.approx(expected, rel=1e-6)


def test_a_rate_of_zero_goes_on_with_another_one(tmp_path):
    from bnfree.lightning_modules.training.changed_settings import ChangedSettings

    run(tmp_path, 2, "default", lr=0.0)
    trainer_callbacks = ChangedSettings({"lr": (0.0, RATE)}, {})
    recorder = Recorder()
    recorder.path = tmp_path / "again.ckpt"
    module = ImageClassifier(
        ReActNet18(num_classes=10, in_channels=1, width=4), optimizer=lambda p: SGD(p, lr=RATE), calibration="none"
    )
    trainer = Trainer(
        accelerator="cpu", max_epochs=4, callbacks=[trainer_callbacks, recorder], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    data = DigitsDataModule(batch_size=64, limit_train=320)
    trainer.fit(module, datamodule=data, ckpt_path=tmp_path / "stopped.ckpt")
    assert recorder.rates == pytest.approx([RATE * (1 - k / 20) for k in range(10, 20)])


@pytest.mark.parametrize(("batch", "accumulate"), [(32, 1), (16, 1), (64, 2), (96, 1)])
def test_an_epoch_goes_on_after_its_images_whatever_the_batches(tmp_path, batch, accumulate):
    whole = run(tmp_path / "whole", 2, "default").images
    seen = run(tmp_path, 2, "default", stop_after=2).images
    rest = run(tmp_path, 2, "default", resume=tmp_path / "stopped.ckpt", batch=batch, accumulate=accumulate).images

    def of_epoch(batches, epoch):
        return sorted(image for e, images in batches if e == epoch for image in images)

    first = of_epoch(seen, 0) + of_epoch(rest, 0)
    assert len(first) == len(set(first)), "images were repeated"
    left = 320 - 128
    assert len(of_epoch(rest, 0)) == left - left % batch
    if left % batch == 0:
        assert sorted(first) == of_epoch(whole, 0)
    assert len(of_epoch(rest, 1)) == 320 - 320 % batch


def test_an_unchanged_run_is_left_to_the_bit(tmp_path):
    schedule, _ = schedule_named("CosineAnnealingLR")
    whole = run(tmp_path / "whole", 4, schedule).rates
    part = run(tmp_path, 4, schedule, stop_after=7).rates
    assert part + run(tmp_path, 4, schedule, resume=tmp_path / "stopped.ckpt").rates == whole


def test_a_run_by_steps_goes_on_by_steps(tmp_path):
    run(tmp_path, -1, "default", stop_after=6, max_steps=12)
    rates = run(tmp_path, -1, "default", resume=tmp_path / "stopped.ckpt", max_steps=24).rates
    assert rates == pytest.approx([RATE * (1 - k / 24) for k in range(6, 24)])
