"""The course of estimators over a training, and ReSTE's indicators of it."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from bnfree.backbones import ReActNet18
from bnfree.callbacks import EstimatorIndicators, EstimatorSchedule
from bnfree.errors import InputError


def small(**options):
    """A network of four units."""
    return ReActNet18(width=4, blocks_per_stage=[1, 1, 1, 1], **options)


class Progress(Callback):
    """Of signs and weights at every step."""

    def __init__(self):
        self.signs, self.weights = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        unit = pl_module.backbone.body[3][0]
        self.signs.append(unit.rsign.estimator_progress.item())
        self.weights.append(unit.convolution.estimator_progress.item())


def network():
    return small(estimator="reste", weight_estimator="ede")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75]),
        ({"interval": "step"}, [i / 8 for i in range(8)]),
        ({"interval": "step", "end": 0.5}, [i / 16 for i in range(8)]),
    ],
)
def test_progress_is_the_share_of_the_run_that_lies_behind(options, expected, classifier, make_trainer, make_loader):
    progress = Progress()
    trainer = make_trainer(EstimatorSchedule(**options), progress, max_epochs=4)
    trainer.fit(classifier(network()), make_loader())
    assert progress.signs == progress.weights == expected


def test_accumulated_batches_are_one_step(classifier, make_trainer, make_loader):
    progress = Progress()
    trainer = make_trainer(EstimatorSchedule("step"), progress, max_epochs=2, accumulate_grad_batches=2)
    trainer.fit(classifier(network()), make_loader())
    assert progress.signs == [0, 0, 0.5, 0.5]


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_a_resumed_run_equals_an_uninterrupted_one(interval, classifier, make_trainer, make_loader, tmp_path):
    def fit(ckpt_path=None):
        torch.manual_seed(0)
        progress = Progress()
        module = classifier(network())
        keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = make_trainer(EstimatorSchedule(interval), keep, progress, max_epochs=3, enable_checkpointing=True)
        trainer.fit(module, make_loader(), ckpt_path=ckpt_path, weights_only=True)
        return module.state_dict(), progress.signs

    weights, progress = fit()
    resumed, later = fit(tmp_path / "step=2.ckpt")
    assert later == progress[2:]
    assert all(torch.equal(resumed[name], value) for name, value in weights.items())
    # In the middle of an epoch; the loader of this test begins with its first batch again.
    assert fit(tmp_path / "step=3.ckpt")[1] == progress[3:]


@pytest.mark.parametrize(("name", "value"), [("interval", "batch"), ("end", 0.0), ("end", 1.5)])
def test_refuses_values_out_of_range(name, value):
    with pytest.raises(InputError, match=name):
        EstimatorSchedule(**{name: value})


def test_refuses_a_network_without_a_schedule(classifier, make_trainer, make_loader):
    with pytest.raises(InputError, match="no estimator with a schedule"):
        make_trainer(EstimatorSchedule()).fit(classifier(), make_loader())


def test_refuses_a_run_without_an_end(classifier, make_trainer, make_loader):
    with pytest.raises(InputError, match="no end"):
        make_trainer(EstimatorSchedule(), max_epochs=-1).fit(classifier(network()), make_loader())


class Gradients(Callback):
    """Sum over binary layers of the variance of |gradient|, and of the distance of f(w) from the sign."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        layers = [unit.convolution for stage in pl_module.backbone.body for unit in stage]
        self.instability = sum(layer.weight.grad.abs().double().var(correction=0).item() for layer in layers)

    def on_train_epoch_end(self, trainer, pl_module):
        self.error = 0.0
        for layer in (unit.convolution for stage in pl_module.backbone.body for unit in stage):
            rows = layer.weight.detach().double().flatten(1)
            unit = rows * rows.shape[1] ** 0.5
            if layer.standardize:
                unit = (rows - rows.mean(1, keepdim=True)) / rows.std(1, correction=0, keepdim=True)
            power = 1 / 3
            f = [abs(v) ** power if abs(v) > 0.1 else abs(v) * 0.1**power / 0.1 for v in unit.flatten().tolist()]
            self.error += sum((value - 1) ** 2 for value in f) ** 0.5


@pytest.mark.parametrize("norm", ["bn_free", "batch_norm"])
def test_the_indicators_are_those_of_reste(norm, classifier, make_trainer, make_loader):
    ours, theirs = EstimatorIndicators(), Gradients()
    module = classifier(small(weight_estimator="reste", norm=norm))
    for layer in (unit.convolution for stage in module.backbone.body for unit in stage):
        layer.estimator_progress.fill_(1.0)
    trainer = make_trainer(ours, theirs)
    trainer.fit(module, make_loader())
    assert trainer.callback_metrics["estimator/instability"].item() == pytest.approx(theirs.instability, rel=1e-4)
    assert trainer.callback_metrics["estimator/error"].item() == pytest.approx(theirs.error, rel=1e-3)


def test_the_error_falls_and_the_instability_grows_with_the_schedule(classifier, make_trainer, make_loader):
    """The trade-off that the paper is about."""
    found = []
    for progress in (0.0, 1.0):
        torch.manual_seed(0)
        module = classifier(small(weight_estimator="reste"))
        for layer in (unit.convolution for stage in module.backbone.body for unit in stage):
            layer.estimator_progress.fill_(progress)
        trainer = make_trainer(EstimatorIndicators(), max_steps=1)
        trainer.fit(module, make_loader())
        found.append([trainer.callback_metrics[f"estimator/{name}"].item() for name in ("error", "instability")])
    assert found[1][0] < found[0][0]
    assert found[1][1] > found[0][1]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"binary_weights": False}, "no binary weights"), ({"weight_estimator": "ede"}, "no surrogate")],
)
def test_the_indicators_refuse_what_they_cannot_measure(options, message, classifier, make_trainer, make_loader):
    with pytest.raises(InputError, match=message):
        make_trainer(EstimatorIndicators()).fit(classifier(small(**options)), make_loader())
