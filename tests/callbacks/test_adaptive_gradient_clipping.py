import re
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import nn
from torchvision.models import resnet18

from bnfree.callbacks import AdaptiveGradientClipping
from bnfree.callbacks.adaptive_gradient_clipping import find_excluded
from bnfree.errors import InputError


def ratios(parameter, gradient):
    """Gradient norm over weight norm (floor 1e-3) per output row."""
    rows = parameter.shape[0] if parameter.dim() > 1 else 1
    norm = gradient.reshape(rows, -1).norm(dim=1)
    return norm / parameter.detach().reshape(rows, -1).norm(dim=1).clamp(min=1e-3)


class Recorder(Callback):
    """Keeps the gradients and weights that the optimizer is about to see."""

    def __init__(self):
        self.steps = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        trained = {n: p for n, p in pl_module.named_parameters() if p.grad is not None}
        self.steps.append({n: (p.detach().clone(), p.grad.clone()) for n, p in trained.items()})

    def ratios(self, step=0):
        return {name: ratios(*pair) for name, pair in self.steps[step].items()}


@pytest.fixture
def run(classifier, head, make_trainer, make_loader):
    def run(agc, backbone=None, make_optimizer=None, loader=None, **kwargs):
        before, after = Recorder(), Recorder()
        module = classifier(head() if backbone is None else backbone, make_optimizer)
        make_trainer(before, agc, after, **kwargs).fit(module, loader or make_loader())
        return before, after

    return run


def test_clips_everything_but_the_classifier(run):
    before, after = run(AdaptiveGradientClipping(clip_factor=1e-3))
    assert len(after.steps) == 2
    for step in range(2):
        long = [name for name, ratio in before.ratios(step).items() if ratio.max() > 2e-3]
        assert set(long) >= {"backbone.features.weight", "backbone.classifier.weight", "backbone.classifier.bias"}
        for name, ratio in after.ratios(step).items():
            if "classifier" in name:
                assert torch.equal(after.steps[step][name][1], before.steps[step][name][1])
            else:
                assert ratio.max() <= 1e-3 * (1 + 1e-5)


def test_excludes_by_identity_and_not_by_name(run):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.classifier_of_features = nn.Linear(192, 6)
            self.classifier = nn.Linear(6, 10)

        def forward(self, images):
            return self.classifier(self.classifier_of_features(images.flatten(1)))

    _, after = run(AdaptiveGradientClipping(clip_factor=1e-3), Named())
    assert after.ratios()["backbone.classifier_of_features.weight"].max() <= 1e-3 * (1 + 1e-5)
    assert after.ratios()["backbone.classifier.weight"].max() > 2e-3


def test_classifier_of_the_module_itself(classifier, make_trainer, make_loader):
    class Bare(classifier):
        def __init__(self):
            super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(192, 6)))
            self.classifier = nn.Linear(6, 10)

        def forward(self, images):
            return self.classifier(self.backbone(images))

    after = Recorder()
    make_trainer(AdaptiveGradientClipping(clip_factor=1e-3), after).fit(Bare(), make_loader())
    assert after.ratios()["classifier.weight"].max() > 2e-3
    assert after.ratios()["backbone.1.weight"].max() <= 1e-3 * (1 + 1e-5)


@pytest.mark.parametrize(
    ("exclude", "spared"),
    [
        ([], set()),
        (["backbone.features"], {"backbone.features.weight", "backbone.features.bias"}),
        (["backbone.features.weight"], {"backbone.features.weight"}),
        (["*.bias"], {"backbone.features.bias", "backbone.classifier.bias"}),
        (["backbone._orig_mod.classifier"], {"backbone.classifier.weight", "backbone.classifier.bias"}),
    ],
)
def test_exclude_by_name(run, exclude, spared):
    before, after = run(AdaptiveGradientClipping(clip_factor=1e-5, exclude=exclude))
    unchanged = {n for n in after.steps[0] if torch.equal(after.steps[0][n][1], before.steps[0][n][1])}
    assert unchanged == spared


@pytest.mark.parametrize("exclude", [None, ["backbone.classifier"]])
def test_compiled_backbone(run, head, exclude):
    compiled = torch.compile(head(), backend="eager")
    before, after = run(AdaptiveGradientClipping(clip_factor=1e-5, exclude=exclude), compiled)
    assert "backbone._orig_mod.classifier.weight" in after.steps[0]
    unchanged = {n for n in after.steps[0] if torch.equal(after.steps[0][n][1], before.steps[0][n][1])}
    assert unchanged == {"backbone._orig_mod.classifier.weight", "backbone._orig_mod.classifier.bias"}


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("classifier", "backbone.classifier"),
        ("backbone.feature.weigth", "backbone.features.weight"),
        (r"*.wieght", "backbone.features.weight"),
    ],
)
def test_unknown_name_is_answered_with_the_nearest(run, name, nearest):
    with pytest.raises(InputError, match=f"exclude='{re.escape(name)}' .* nearest is '{nearest}'"):
        run(AdaptiveGradientClipping(exclude=[name]))


def test_no_classifier_to_exclude_is_said(run):
    backbone = nn.Sequential(nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(InputError, match=r"finds no classifier: .* its last layers are 'backbone\.0'.*empty list"):
        run(AdaptiveGradientClipping(), backbone)
    _, after = run(AdaptiveGradientClipping(clip_factor=1e-4, exclude=[]), backbone)
    assert after.ratios()["backbone.0.weight"].max() <= 1e-4 * (1 + 1e-5)


def test_without_a_usual_name_it_is_the_last_linear_layer_in_use(run):
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits, self.features, self.spare = nn.Linear(6, 10), nn.Linear(192, 6), nn.Linear(2, 2)

        def forward(self, images):
            return self.logits(self.features(images.flatten(1)))

    _, after = run(AdaptiveGradientClipping(clip_factor=1e-4), Backwards())
    for step in range(2):
        ratios = {n: r for n, r in after.ratios(step).items() if "spare" not in n}
        assert ratios["backbone.features.weight"].max() <= 1e-4 * (1 + 1e-5)
        assert ratios["backbone.logits.weight"].max() > 1e-3


def test_timms_and_torchvisions_classifiers_are_found(classifier):
    class Timms(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.last_layer = nn.Linear(2, 2), nn.Linear(2, 2)

        def get_classifier(self):
            return self.last_layer

    for network, name in ((Timms(), "last_layer"), (resnet18(num_classes=3), "fc"), (vit_b_16_like(), "heads")):
        assert find_excluded(classifier(network), None) == [(getattr(network, name), None)]


def vit_b_16_like():
    network = nn.Module()
    network.encoder, network.heads = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))
    return network


def test_a_network_in_another_attribute_is_found(make_trainer, make_loader, foreign):
    after = Recorder()
    make_trainer(AdaptiveGradientClipping(clip_factor=1e-3), after).fit(foreign(), make_loader())
    assert after.ratios()["net.classifier.weight"].max() > 2e-3
    assert after.ratios()["net.stem.convolution.weight"].max() <= 1e-3 * (1 + 1e-5)


@pytest.mark.parametrize("clip_factor", [None, 0])
def test_a_parameter_group_wins(run, clip_factor):
    def make_optimizer(module):
        features, rest = module.backbone.features, module.backbone.classifier
        groups = [{"params": features.parameters(), "clip_factor": 1e-4}]
        return torch.optim.SGD([*groups, {"params": rest.parameters(), "clip_factor": clip_factor}], lr=0.1)

    before, after = run(AdaptiveGradientClipping(clip_factor=1e-2, exclude=[]), make_optimizer=make_optimizer)
    assert after.ratios()["backbone.features.weight"].max() == pytest.approx(1e-4)
    for name in ("backbone.classifier.weight", "backbone.classifier.bias"):
        assert torch.equal(after.steps[0][name][1], before.steps[0][name][1])


def test_once_per_step_on_the_accumulated_gradient(run, make_loader):
    _, halves = run(
        AdaptiveGradientClipping(clip_factor=1e-3), loader=make_loader(8, 4), accumulate_grad_batches=2, max_epochs=1
    )
    torch.manual_seed(0)
    assert len(halves.steps) == 1
    assert halves.ratios()["backbone.features.weight"].max() == pytest.approx(1e-3)


def test_logs_the_share_of_clipped_units(classifier, head, make_trainer, make_loader, tmp_path):
    logger = CSVLogger(tmp_path, name="log", version=0)
    before, agc = Recorder(), AdaptiveGradientClipping(clip_factor=2.4)
    make_trainer(before, agc, logger=logger, log_every_n_steps=2).fit(classifier(head()), make_loader(16, 4))
    rows = (tmp_path / "log" / "version_0" / "metrics.csv").read_text().splitlines()
    column, step = rows[0].split(",").index("agc/clipped_fraction"), rows[0].split(",").index("step")
    logged = {int(row.split(",")[step]): float(row.split(",")[column]) for row in rows[1:]}
    assert list(logged) == [1, 3]
    for index, value in logged.items():
        features = [r for n, r in before.ratios(index).items() if "features" in n]
        expected = torch.cat([r > 2.4 for r in features]).float().mean().item()
        assert value == pytest.approx(expected)
    assert 0 < logged[1] < 1


def test_units_are_counted_only_in_steps_that_are_logged(run, make_loader, monkeypatch):
    import bnfree.callbacks.adaptive_gradient_clipping as module

    counted, original = [], module.clip_units_

    def clip_units_(parameters, clip_factor, eps, count=True):
        counted.append(count)
        return original(parameters, clip_factor, eps, count)

    agc = AdaptiveGradientClipping()
    monkeypatch.setattr(module, "clip_units_", clip_units_)
    run(agc, loader=make_loader(16, 4), log_every_n_steps=2)
    assert counted == [False, True, False, True]


def test_logging_can_be_switched_off(classifier, head, make_trainer, make_loader):
    for log_fraction in (True, False):
        trainer = make_trainer(AdaptiveGradientClipping(log_fraction=log_fraction))
        trainer.fit(classifier(head()), make_loader())
        assert ("agc/clipped_fraction" in trainer.callback_metrics) == log_fraction


def test_fraction_stays_finite_when_fp16_overflows(classifier, head, make_trainer, make_loader):
    class Overflowing(classifier):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (float("inf") if batch_idx == 0 else 1)

    trainer = make_trainer(AdaptiveGradientClipping(), limit_train_batches=1)
    trainer.fit(Overflowing(head()), make_loader())
    assert trainer.callback_metrics["agc/clipped_fraction"].item() == 0


def adam(fused):
    return lambda module: torch.optim.Adam(module.parameters(), fused=fused)


def mixed_precision():
    from lightning.pytorch.plugins import MixedPrecision

    return MixedPrecision("16-mixed", "cpu")


def test_fused_optimizer_with_a_scaler_is_refused_before_the_first_batch(run):
    agc = AdaptiveGradientClipping(clip_factor=1e-3)
    with pytest.raises(InputError, match=r"16-mixed.*fused Adam.*fused=false"):
        run(agc, make_optimizer=adam(fused=True), plugins=[mixed_precision()])
    _, after = run(agc, make_optimizer=adam(fused=False), plugins=[mixed_precision()])
    assert after.ratios()["backbone.features.weight"].max() <= 1e-3 * (1 + 1e-5)
    _, after = run(agc, make_optimizer=adam(fused=True), precision="bf16-mixed")
    assert after.ratios()["backbone.features.weight"].max() <= 1e-3 * (1 + 1e-5)


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy])
def test_sharded_strategies_are_refused(strategy):
    trainer = SimpleNamespace(strategy=strategy.__new__(strategy), gradient_clip_val=None)
    with pytest.raises(InputError, match=rf"trainer\.strategy={strategy.__name__} .*AdaptiveGradientClipping.*'ddp'"):
        AdaptiveGradientClipping().setup(trainer, None, "fit")
    AdaptiveGradientClipping().setup(trainer, None, "test")


def test_a_second_clipping_is_refused(run):
    with pytest.raises(InputError, match=r"trainer\.gradient_clip_val=1\.0"):
        run(AdaptiveGradientClipping(), gradient_clip_val=1.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"clip_factor": 0}, "clip_factor=0"), ({"eps": -1}, "eps=-1"), ({"exclude": "fc"}, "list")],
)
def test_arguments_are_checked_at_once(arguments, words):
    with pytest.raises(InputError, match=words):
        AdaptiveGradientClipping(**arguments)


def test_reactnet_trains_with_it(run, classifier, make_trainer, make_loader):
    from bnfree.backbones import ReActNet18

    before, after = run(AdaptiveGradientClipping(clip_factor=0.02), ReActNet18(width=4))
    assert any(ratio.max() > 0.1 for ratio in before.ratios().values())
    for name, ratio in after.ratios(1).items():
        if "classifier" not in name:
            assert ratio.max() <= 0.02 * (1 + 1e-4)
