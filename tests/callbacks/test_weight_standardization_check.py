import csv
import warnings

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from torch.nn.utils import prune

from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.callbacks import WeightStandardizationCheck
from bnfree.errors import InputError


class Breaks(Callback):
    """Breaks the network after `step` optimizer steps (0: before the first)."""

    def __init__(self, how, step=0):
        self.how, self.step = how, step

    def on_fit_start(self, trainer, pl_module):
        if self.step == 0:
            self.how(pl_module.backbone)

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step == self.step:
            self.how(pl_module.backbone)


def constant_row(network):
    with torch.no_grad():
        network.body[1][2].convolution.weight[3] = 0.25


def overwritten(network):
    layer = network.body[1][2].convolution
    layer.effective_weight = lambda: layer.gain * layer.weight


def bypassed(network):
    layer = network.body[1][2].convolution
    layer.forward = lambda x: torch.nn.functional.conv2d(x, layer.weight, None, layer.stride, layer.padding)


def switched_off(network):
    network.body[1][2].convolution.standardize = False


def masked_outside(network):
    prune.random_unstructured(network.body[1][2].convolution, "weight", 0.8)


def not_finite(network):
    with torch.no_grad():
        network.body[1][2].convolution.weight[0, 0, 0, 0] = float("nan")


def other_density(network):
    layer = network.body[1][2].convolution
    layer.set_mask(torch.rand_like(layer.weight) < 0.5)
    original = layer.effective_weight
    layer.effective_weight = lambda: original() + (original() == 0) * 1e-8


FAULTS = {
    constant_row: "1 dead filters of 8",
    overwritten: "effective_weight",
    bypassed: "does not convolve with its effective_weight",
    masked_outside: "does not own its latent weight",
    not_finite: "NaN or infinite",
    other_density: "effective density 1, but its mask says 0.",
}


@pytest.fixture
def fit(classifier, make_trainer, make_loader):
    def fit(*callbacks, backbone=None, lr=0.1, **kwargs):
        trainer = make_trainer(*callbacks, **kwargs)
        module = classifier(
            ReActNet18(width=4) if backbone is None else backbone, lambda m: torch.optim.SGD(m.parameters(), lr)
        )
        trainer.fit(module, make_loader())
        return trainer

    return fit


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_raises_before_the_first_step_and_names_the_layer(fit, fault):
    with pytest.raises(InputError, match=rf"body\.1\.2\.convolution .*{FAULTS[fault]}") as error:
        fit(Breaks(fault), WeightStandardizationCheck(action="raise"))
    assert str(error.value).endswith(".")


@pytest.mark.parametrize("fault", [*FAULTS, switched_off], ids=lambda f: f.__name__)
def test_notices_what_breaks_during_training(fit, fault):
    class Steps(Callback):
        count = 0

        def on_train_batch_end(self, *_):
            self.count += 1

    steps = Steps()
    with pytest.raises(InputError, match=r"body\.1\.2\.convolution "):
        fit(steps, Breaks(fault, step=1), WeightStandardizationCheck(every_n_steps=1, action="raise"))
    assert steps.count == 1


def test_checks_the_weights_that_training_leaves(fit):
    with pytest.raises(InputError, match=r"body\.1\.2\.convolution "):
        fit(Breaks(bypassed, step=1), WeightStandardizationCheck(every_n_steps=100, action="raise"))


@pytest.mark.parametrize(
    "backbone",
    [
        lambda: ReActNet18(width=4),
        lambda: ReActNet18(width=4, reference=True),
        lambda: ReActNet18(width=4, binary_weights=False),
        lambda: ReActNetA(num_classes=10, width=4, stem="cifar"),
        lambda: ReActNet18(width=4, norm="batch_norm"),
        lambda: ReActNet18(width=4, norm="none"),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_passes_on_sound_networks_while_they_train(fit, backbone, masked):
    backbone = backbone()
    for module in backbone.modules():
        if masked and hasattr(module, "set_mask"):
            module.set_mask(torch.rand_like(module.weight) < 0.5)
    trainer = fit(WeightStandardizationCheck(every_n_steps=1, action="raise"), backbone=backbone)
    assert trainer.global_step == 2
    assert ("ws/row_mean" in trainer.callback_metrics) == (backbone.norm == "bn_free")


def sentences(record):
    return [str(w.message) for w in record if "body.1.2" in str(w.message)]


def test_warns_once_for_each_layer_and_kind(fit):
    check = WeightStandardizationCheck(every_n_steps=1)
    with pytest.warns(UserWarning, match=r"body\.1\.2\.convolution has 1 dead filters") as record:
        # With a learning rate of 0 the row stays constant.
        trainer = fit(Breaks(constant_row), Breaks(bypassed, step=2), check, lr=0, max_epochs=2)
    assert trainer.global_step == 4
    assert trainer.callback_metrics["ws/dead_filters"] == 1
    assert ["dead filters" in s for s in sentences(record)] == [True, False]
    assert "does not convolve" in sentences(record)[1]


def test_counts_the_other_layers(fit):
    def two(network):
        constant_row(network)
        with torch.no_grad():
            network.body[0][0].convolution.weight[0] = 0
            network.stem.convolution.weight[0] = 0

    with pytest.raises(InputError, match=r"^stem\.convolution has 1 dead .* \(and 2 more layers failed the check\)\.$"):
        fit(Breaks(two), WeightStandardizationCheck(action="raise"))


def test_only_logs_on_request(fit, tmp_path):
    logger = CSVLogger(tmp_path, name="log", version=0)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        fit(Breaks(constant_row), WeightStandardizationCheck(every_n_steps=2, action="log"), logger=logger)
    assert sentences(record) == []
    with (tmp_path / "log" / "version_0" / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("ws/dead_filters")]
    assert [int(row["step"]) for row in rows] == [0, 2]
    figures = {key: float(value) for key, value in rows[0].items() if key.startswith("ws/")}
    assert figures["ws/dead_filters"] == 1
    for name in ("row_mean", "row_energy_error", "formula_error", "forward_error", "density_error"):
        assert 0 <= figures[f"ws/{name}"] < 1e-4
    assert figures["ws/row_mean"] > 0
    assert figures["ws/non_finite"] == figures["ws/pruned_filters"] == 0


def test_tolerance_decides(fit):
    def slightly(network):
        layer = network.body[1][2].convolution
        original = layer.effective_weight
        layer.effective_weight = lambda: original() * 1.01

    fit(Breaks(slightly), WeightStandardizationCheck(action="raise", tolerance=0.05))
    with pytest.raises(InputError, match="effective_weight"):
        fit(Breaks(slightly), WeightStandardizationCheck(action="raise", tolerance=0.005))


def test_observes_only(fit):
    results = []
    for callbacks in ([], [WeightStandardizationCheck(every_n_steps=1)]):
        torch.manual_seed(3)
        backbone = ReActNet18(width=4)
        fit(*callbacks, backbone=backbone)
        results.append((backbone.state_dict(), torch.rand(1)))
    (expected, expected_random), (state, random) = results
    assert torch.equal(random, expected_random)
    assert all(torch.equal(state[key], value) for key, value in expected.items())


def test_checks_each_step_once_with_accumulated_gradients(fit, monkeypatch):
    import bnfree.callbacks.weight_standardization_check as module

    steps = []
    original = module.weight_statistics
    monkeypatch.setattr(module, "weight_statistics", lambda layer, name: steps.append(name) or original(layer, name))
    trainer = fit(WeightStandardizationCheck(every_n_steps=1), accumulate_grad_batches=2, max_epochs=2)
    assert trainer.global_step == 2
    assert steps.count("stem.convolution") == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"every_n_steps": 0}, "every_n_steps=0"),
        ({"tolerance": 0}, "tolerance=0"),
        ({"action": "stop"}, "action='stop'"),
    ],
)
def test_arguments_are_checked_at_once(arguments, words):
    with pytest.raises(InputError, match=words):
        WeightStandardizationCheck(**arguments)
