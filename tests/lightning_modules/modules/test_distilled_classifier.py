import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD

from bnfree.backbones import ReActNet18
from bnfree.datamodules import DigitsDataModule
from bnfree.errors import InputError
from bnfree.lightning_modules import DistilledClassifier, ImageClassifier, Teacher
from bnfree.losses.comp_sum import CompSum


def network(seed=0, **options):
    torch.manual_seed(seed)
    return ReActNet18(**{"num_classes": 4, "width": 4, **options})


def teacher_network(seed=1, **options):
    return network(seed, norm="batch_norm", **options)


def distilled(teacher=None, backbone=None, **options):
    teacher = teacher if teacher is not None else Teacher(teacher_network())
    return DistilledClassifier(network() if backbone is None else backbone, teacher, **options)


class Watch(Callback):
    """Copies of the teachers' states when training starts and when it ends, and the lines logged in between."""

    def __init__(self):
        self.states = []

    def on_train_start(self, trainer, pl_module):
        self.states.append([copy.deepcopy(t.loaded.state_dict()) for t in pl_module.teachers])

    on_train_end = on_train_start


class HiddenLabels(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        batch[1].zero_()


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr("bnfree.lightning_modules.modules.distilled_classifier.rank_zero_info", lines.append)
    return lines


@pytest.mark.slow
def test_it_learns_from_a_teacher_without_a_label(corners, make_trainer, said):
    teacher = ImageClassifier(network(), optimizer=lambda p: torch.optim.Adam(p, lr=0.01))
    make_trainer(max_epochs=10).fit(teacher, datamodule=corners)
    with torch.no_grad():
        accuracy = (teacher.eval()(corners.dataset.tensors[0]).argmax(1) == corners.dataset.tensors[1]).float().mean()
    trainer = make_trainer(max_epochs=20, callbacks=[HiddenLabels()])
    module = distilled(teacher.backbone, network(seed=7), optimizer=lambda p: torch.optim.Adam(p, lr=0.01))
    trainer.fit(module, datamodule=corners)
    assert said == [f"Teacher ReActNet18: {100 * accuracy:.2f} % of 64 validation images."]
    with torch.no_grad():
        logits = module.eval()(corners.dataset.tensors[0])
    assert (logits.argmax(1) == corners.dataset.tensors[1]).float().mean() > 0.9
    assert {"train/loss", "train/acc", "val/loss", "val/acc"} <= set(trainer.callback_metrics)
    assert "train/distillation_loss" not in trainer.callback_metrics


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_one_step_is_that_of_plain_torch(corners, make_trainer, weight):
    """Two teachers, T = 3, both losses, in float64."""
    temperature, smoothing = 3.0, 0.1
    teachers = [teacher_network(1), teacher_network(2)]
    backbone = network(norm="none").double()
    module = distilled(
        teachers, backbone, temperature=temperature, hard_label_weight=weight, label_smoothing=smoothing,
        optimizer=lambda p: SGD(p, lr=0.5),
    )  # fmt: skip
    plain = copy.deepcopy(backbone)
    trainer = make_trainer(limit_train_batches=1, limit_val_batches=0, precision="64-true")
    trainer.fit(module, datamodule=corners)

    images, labels = corners.dataset.tensors[0][:16].double(), corners.dataset.tensors[1][:16]
    with torch.no_grad():
        logits = [copy.deepcopy(t).double().eval()(images) for t in teachers]
        target = sum(torch.softmax(one / temperature, 1) for one in logits) / 2
    student = plain(images)
    soft = -(target * torch.log_softmax(student / temperature, 1)).sum(1).mean() * temperature**2
    smoothed = F.one_hot(labels, 4).double() * (1 - smoothing) + smoothing / 4
    hard = -(smoothed * torch.log_softmax(student, 1)).sum(1).mean()
    loss = (1 - weight) * soft + weight * hard
    loss.backward()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter -= 0.5 * parameter.grad
    for (name, ours), theirs in zip(backbone.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(loss.item(), rel=1e-6)
    if weight:
        assert trainer.callback_metrics["train/distillation_loss"].item() == pytest.approx(soft.item(), rel=1e-6)


def test_validation_and_test_loss_are_those_without_a_teacher(corners, make_trainer):
    module = distilled(temperature=4.0)
    (val,) = make_trainer().validate(module, datamodule=corners, verbose=False)
    (test,) = make_trainer().test(module, datamodule=corners, verbose=False)
    with torch.no_grad():
        expected = F.cross_entropy(module(corners.dataset.tensors[0]), corners.dataset.tensors[1]).item()
    assert val["val/loss"] == pytest.approx(expected, rel=1e-5)
    assert test["test/loss"] == pytest.approx(expected, rel=1e-5)


def test_the_teacher_stays_as_it_was_and_out_of_sight(corners, make_trainer, tmp_path):
    watch, given = Watch(), teacher_network()
    module = distilled(Teacher(given))
    trainer = make_trainer(max_epochs=2, callbacks=[watch])
    trainer.fit(module, datamodule=corners)
    before, after = watch.states
    for states in (before, after):
        for name, value in given.state_dict().items():
            assert torch.equal(states[0][name], value), name
    mine = {id(p) for p in module.backbone.parameters()}
    assert {id(p) for p in module.parameters()} == mine
    assert {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]} == mine
    assert not any(m is given for m in module.modules())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert content["state_dict"].keys() == {f"backbone.{key}" for key in module.backbone.state_dict()}
    assert "teacher" not in content["hyper_parameters"]
    assert content["hyper_parameters"]["temperature"] == 1.0
    loaded = DistilledClassifier.load_from_checkpoint(tmp_path / "a.ckpt", backbone=network(), teacher=Teacher(given))
    assert torch.equal(loaded.backbone.body[0][0].convolution.weight, module.backbone.body[0][0].convolution.weight)


def test_it_goes_with_a_moving_average_of_the_weights(corners, make_trainer):
    module = distilled()
    average = EMAWeightAveraging(decay=0.5, update_starting_at_step=0)
    make_trainer(max_epochs=2, callbacks=[average]).fit(module, datamodule=corners)
    assert average._average_model.module.teachers[0] is module.teachers[0]


class Stop(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = True


def test_a_resumed_run_equals_an_uninterrupted_one(corners, make_trainer, tmp_path):
    def run(name, callbacks=(), ckpt_path=None):
        checkpoint = ModelCheckpoint(tmp_path / name, monitor=None, filename="last")
        module = distilled(hard_label_weight=0.5)
        make_trainer(max_epochs=3, callbacks=[checkpoint, *callbacks]).fit(
            module, datamodule=corners, ckpt_path=ckpt_path
        )
        return module.state_dict()

    whole = run("whole")
    run("stopped", [Stop()])
    resumed = run("resumed", ckpt_path=tmp_path / "stopped" / "last.ckpt")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


class TaughtInTheOpen(ImageClassifier):
    """The same loss, and no line about the teacher."""

    def __init__(self, backbone, teacher, **options):
        super().__init__(backbone, **options)
        self.others = [teacher.eval()]

    def training_loss(self, images, logits, labels):
        with torch.no_grad():
            target = self.others[0](images).softmax(1)
        return F.cross_entropy(logits, target)


@pytest.mark.parametrize("ours", [True, False])
def test_testing_the_teacher_changes_no_bit_of_the_training(corners, make_trainer, said, ours):
    """With the project's own data and with a loader of torch's that shuffles by the global generator."""

    def run(kind):
        teacher = teacher_network(in_channels=1 if ours else 3, num_classes=10 if ours else 4)
        backbone = network(in_channels=1 if ours else 3, num_classes=10 if ours else 4)
        module = kind(backbone, teacher)
        torch.manual_seed(5)
        trainer = make_trainer(max_epochs=2, limit_train_batches=4, num_sanity_val_steps=1)
        if ours:
            trainer.fit(module, datamodule=DigitsDataModule(batch_size=16))
        else:
            loader = torch.utils.data.DataLoader(corners.dataset, 16, shuffle=True)
            trainer.fit(module, loader, torch.utils.data.DataLoader(corners.dataset, 16, shuffle=True))
        return module.state_dict(), torch.get_rng_state()

    state, random = run(DistilledClassifier)
    assert len(said) == 1
    expected, expected_random = run(TaughtInTheOpen)
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    assert torch.equal(random, expected_random)


def test_the_accuracy_is_that_of_evenly_spread_validation_images(make_trainer, said, monkeypatch):
    monkeypatch.setattr("bnfree.lightning_modules.modules.distilled_classifier.IMAGES_TO_TEST_ON", 50)
    data = DigitsDataModule(batch_size=16)
    teachers = [teacher_network(seed, in_channels=1, num_classes=10) for seed in (1, 2)]
    module = distilled(teachers, network(in_channels=1, num_classes=10))
    make_trainer(limit_train_batches=1, limit_val_batches=1).fit(module, datamodule=data)
    batches = list(data.validation_batches(10**6))
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    places = [i * len(labels) // 50 for i in range(50)]
    images, labels = images[places], labels[places]
    with torch.no_grad():
        answers = [teacher.eval()(images).softmax(1) for teacher in teachers]
    right = [(answer.argmax(1) == labels).float().mean().item() for answer in [*answers, sum(answers)]]
    names = ["Teacher ReActNet18", "Teacher ReActNet18", "Teachers together"]
    assert said == [f"{n}: {100 * r:.2f} % of 50 validation images." for n, r in zip(names, right, strict=True)]


def test_without_validation_images_it_says_so(make_trainer, said):
    module = distilled(teacher_network(in_channels=1, num_classes=10), network(in_channels=1, num_classes=10))
    make_trainer(limit_train_batches=1).fit(module, datamodule=DigitsDataModule(batch_size=16, val_split=0))
    assert said == ["Teacher ReActNet18: no validation images to test it on."]


def test_evaluation_does_not_need_the_teachers_file(corners, make_trainer, tmp_path):
    module = distilled(Teacher(teacher_network, str(tmp_path / "gone.ckpt")))
    assert "test/acc" in make_trainer().test(module, datamodule=corners, verbose=False)[0]
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(InputError, match="gone.ckpt' is not a file"):
        make_trainer().fit(module, datamodule=corners)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_a_teacher_of_other_classes_is_refused_before_training(corners, make_trainer):
    with pytest.raises(InputError, match=r"knows 5 classes, but backbone.num_classes=4"):
        make_trainer().fit(distilled(teacher_network(num_classes=5)), datamodule=corners)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"teacher": []}, r"teacher=\[\] holds no teacher"),
        ({"teacher": "resnet18"}, "teacher='resnet18' is a str"),
        ({"teacher": [Teacher(nn.Identity()), 3]}, "teacher=3 is a int"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"hard_label_weight": -0.1}, "hard_label_weight=-0.1"),
        ({"hard_label_weight": 1.1}, "hard_label_weight=1.1"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
    ],
)
def test_values_out_of_range_are_named(options, sentence):
    with pytest.raises(InputError, match=sentence):
        distilled(**options)


SCRIPT = """
import sys
import torch
from lightning.pytorch import Trainer

from bnfree.backbones import ReActNet18
from bnfree.datamodules import DigitsDataModule
from bnfree.lightning_modules import DistilledClassifier, Teacher

processes, path = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
torch.manual_seed(1)
teacher = ReActNet18(10, in_channels=1, width=4, norm="batch_norm")
torch.manual_seed(3)
network = ReActNet18(10, in_channels=1, width=4)
module = DistilledClassifier(network, Teacher(teacher), optimizer=lambda p: torch.optim.SGD(p, lr=0.05))
trainer = Trainer(
    accelerator="cpu", devices=processes, precision="64-true", strategy="ddp" if processes > 1 else "auto",
    max_epochs=1, limit_train_batches=3, limit_val_batches=1, logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False,
)
trainer.fit(module, datamodule=DigitsDataModule(batch_size=32 // processes))
wrapped = trainer.strategy.model
parameters = {id(p) for p in wrapped.parameters()}
assert parameters == {id(p) for p in network.parameters()}, "DDP has other parameters than the student's"
if trainer.is_global_zero:
    torch.save(network.state_dict(), path)
"""


@pytest.mark.slow
def test_two_processes_train_the_student_of_one_and_do_not_see_the_teacher(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    results = []
    for processes in (1, 2):
        out = tmp_path / f"{processes}.pt"
        run = subprocess.run(
            [sys.executable, "train.py", str(processes), str(out)], cwd=tmp_path, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}, timeout=1200,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr[-2000:]
        assert (run.stdout + run.stderr).count("validation images") == 1
        results.append(torch.load(out, weights_only=True))
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-9, atol=1e-9)


class Undecided(nn.Module):
    """A network that gives every class of every image the same logit."""

    num_classes = 4

    def __init__(self):
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(()))

    def forward(self, images):
        return self.logit.expand(len(images), 4)


@pytest.mark.parametrize("loss", [None, CompSum(tau=0), CompSum(tau=1.5)])
@pytest.mark.parametrize("options", [{}, {"temperature": 3.0}, {"temperature": 2.0, "hard_label_weight": 0.25}])
def test_what_guessing_costs(options, loss):
    module = distilled(teacher_network().eval(), Undecided(), loss=loss or "cross_entropy", **options)
    module.log = lambda *arguments, **keywords: None
    images, labels = torch.randn(3, 3, 8, 8), torch.tensor([0, 3, 1])
    module.teachers[0].load(4)
    found = module.training_loss(images, module(images), labels).item()
    assert module.loss_of_guessing() == pytest.approx(found, rel=1e-6)
    assert distilled(Teacher(teacher_network()), discriminator_weight=1.0).loss_of_guessing() is None
