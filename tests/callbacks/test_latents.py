"""What callbacks make of latent weights: a sphere, flips without them, signs that stay or should not, steered flips."""

from itertools import pairwise

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from bnfree.backbones import ReActNet18
from bnfree.callbacks import (
    AffineOnly,
    Bop,
    FlipSchedule,
    FreezeSigns,
    LatentSphere,
    PeriodicRegularizer,
    ScheduleFree,
    SilentWeightDecay,
)
from bnfree.callbacks.bop import flip, to_signs
from bnfree.callbacks.latent_sphere import project_to_sphere
from bnfree.convolution import BinaryConv2d
from bnfree.diagnostics import count_flips, weight_signs
from bnfree.errors import InputError
from bnfree.silent_weights import silence_gradient


def small(**options):
    """A network of four units."""
    return ReActNet18(width=4, blocks_per_stage=[1, 1, 1, 1], **options)


class Record(Callback):
    """Something of the network after every batch."""

    def __init__(self, of):
        self.of, self.found = of, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.found.append(self.of(pl_module.backbone))


def layer_in(network):
    return network.body[1][0].convolution


def norms(network):
    return layer_in(network).weight.detach().flatten(1).norm(dim=1).clone()


def adam(lr):
    return lambda module: torch.optim.Adam(module.parameters(), lr=lr)


def fit(module, make_trainer, make_loader, *callbacks, **options):
    trainer = make_trainer(*callbacks, **options)
    trainer.fit(module, make_loader())
    return trainer


def resumes(make, classifier, make_trainer, make_loader, tmp_path):
    """Whether a run of 3 epochs that goes on after its first one ends as one that was not interrupted."""

    def run(ckpt_path=None):
        torch.manual_seed(0)
        module = classifier(small(), adam(0.01))
        keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = make_trainer(make(), keep, max_epochs=3, enable_checkpointing=True)
        trainer.fit(module, make_loader(), ckpt_path=ckpt_path, weights_only=True)
        return module.state_dict()

    whole, resumed = run(), run(tmp_path / "step=2.ckpt")
    return all(torch.equal(resumed[name], value) for name, value in whole.items())


# On a sphere


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("binary", [False, True])
def test_a_projection_does_not_change_what_the_layer_computes(centre, binary):
    layer = BinaryConv2d(4, 6, 3, binary_weights=binary, eps=1e-15).double()
    before = layer.effective_weight().detach()
    project_to_sphere(layer, torch.linspace(0.5, 3, 6, dtype=torch.float64), centre)
    torch.testing.assert_close(layer.effective_weight().detach(), before, rtol=0, atol=1e-12)
    norm = layer.weight.detach().flatten(1).norm(dim=1)
    torch.testing.assert_close(norm, torch.linspace(0.5, 3, 6, dtype=torch.float64))
    if centre:
        assert layer.weight.mean((1, 2, 3)).abs().max() < 1e-12


def test_a_projection_is_of_survivors_alone():
    layer = BinaryConv2d(4, 6, 3)
    layer.set_mask(torch.rand(layer.weight.shape) < 0.5)
    before = layer.weight.detach().clone()
    project_to_sphere(layer, torch.full((6,), 2.0))
    kept = (layer.weight.detach() * layer.mask).flatten(1).norm(dim=1)
    torch.testing.assert_close(kept, torch.full((6,), 2.0))
    assert torch.equal(layer.weight[~layer.mask], before[~layer.mask])


@pytest.mark.parametrize(("radius", "centre"), [("initial", False), (1.0, True)])
def test_norms_stay_over_a_training(radius, centre, classifier, make_trainer, make_loader):
    record = Record(norms)
    module = classifier(small(), adam(0.05))
    expected = norms(module.backbone) if radius == "initial" else torch.ones(8)
    fit(module, make_trainer, make_loader, LatentSphere(radius, centre), record, max_epochs=5)
    assert all(torch.allclose(found, expected, rtol=1e-5) for found in record.found)
    free = classifier(small(), adam(0.05))
    fit(free, make_trainer, make_loader, max_epochs=5)
    assert not torch.allclose(norms(free.backbone), norms(classifier(small()).backbone), rtol=0.2)


def test_moments_of_adam_stay_as_they_are(classifier, make_trainer, make_loader):
    """After one step, whose gradients do not depend on the projection."""
    found = []
    for callbacks in ((), (LatentSphere(1.0),)):
        torch.manual_seed(0)
        module = classifier(small(), adam(0.05))
        trainer = fit(module, make_trainer, make_loader, *callbacks, max_steps=1)
        found.append(trainer.optimizers[0].state[layer_in(module.backbone).weight]["exp_avg"])
    assert torch.equal(*found)


def test_a_sphere_goes_on(classifier, make_trainer, make_loader, tmp_path):
    assert resumes(LatentSphere, classifier, make_trainer, make_loader, tmp_path)


def test_a_sphere_refuses_weight_decay_and_networks_without_one(classifier, make_trainer, make_loader):
    decayed = classifier(make_optimizer=lambda m: torch.optim.AdamW(m.parameters(), weight_decay=0.1))
    with pytest.raises(InputError, match=r"weight_decay=0\.1 shrinks"):
        fit(decayed, make_trainer, make_loader, LatentSphere())
    with pytest.raises(InputError, match="no standardised convolution"):
        fit(classifier(small(norm="batch_norm")), make_trainer, make_loader, LatentSphere())
    for radius in ("first", 0.0):
        with pytest.raises(InputError, match="radius"):
            LatentSphere(radius)


# Without latent weights


def test_bop_flips_what_the_mean_gradient_has_the_sign_of_for_long_enough():
    """larq's rule element by element: w <- sign(-sign(w m - threshold) w)."""
    torch.manual_seed(0)
    weight = torch.randn(50, dtype=torch.float64).sign()
    mean = torch.zeros_like(weight)
    expected, sums = weight.tolist(), [0.0] * 50
    for _ in range(20):
        gradient = torch.randn(50, dtype=torch.float64)
        flip(weight, mean, gradient, gamma=0.1, threshold=0.05)
        for i, g in enumerate(gradient.tolist()):
            sums[i] = 0.9 * sums[i] + 0.1 * g
            expected[i] *= -1 if expected[i] * sums[i] > 0.05 else 1
        assert weight.tolist() == expected
        torch.testing.assert_close(mean, torch.tensor(sums, dtype=torch.float64))


@pytest.mark.parametrize("standardize", [True, False])
def test_bop_begins_with_the_signs_of_the_layer(standardize):
    layer = BinaryConv2d(4, 6, 3, standardize=standardize)
    before = layer.effective_weight().sign()
    to_signs(layer)
    assert torch.equal(layer.effective_weight().sign(), before)
    assert layer.weight.detach().abs().unique().numel() == 1


def test_bop_trains_signs_and_the_optimizer_all_else(classifier, make_trainer, make_loader):
    module = classifier(small(), lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, weight_decay=0.5))
    size = layer_in(module.backbone).weight[0].numel() ** -0.5
    record = Record(lambda network: layer_in(network).weight.detach().clone())
    stem = module.backbone.stem.convolution.weight.detach().clone()
    fit(module, make_trainer, make_loader, Bop(gamma=0.1), record, max_epochs=4)
    assert all(torch.allclose(found.abs(), torch.tensor(size), rtol=1e-6) for found in record.found)
    assert not torch.equal(record.found[0], record.found[-1])
    assert not torch.equal(module.backbone.stem.convolution.weight, stem)


def test_bop_goes_on(classifier, make_trainer, make_loader, tmp_path):
    assert resumes(lambda: Bop(gamma=0.1), classifier, make_trainer, make_loader, tmp_path)


def test_bop_refuses_what_it_cannot_do(classifier, make_trainer, make_loader):
    with pytest.raises(InputError, match="no binary weights"):
        fit(classifier(small(binary_weights=False)), make_trainer, make_loader, Bop())
    for options in ({"gamma": 0.0}, {"threshold": -1.0}):
        with pytest.raises(InputError, match=next(iter(options))):
            Bop(**options)


# Signs that stay


def test_latent_weights_stay_in_the_last_part_and_all_else_does_not(classifier, make_trainer, make_loader):
    record = Record(lambda network: layer_in(network).weight.detach().clone())
    gains = Record(lambda network: layer_in(network).gain.detach().clone())
    module = classifier(small(), lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, weight_decay=0.1))
    fit(module, make_trainer, make_loader, FreezeSigns(0.5), record, gains, max_epochs=3)
    moved = [not torch.equal(a, b) for a, b in zip(record.found, record.found[1:], strict=False)]
    assert moved == [True, True, False, False, False]
    assert not torch.equal(gains.found[-1], gains.found[-2])


def test_signs_freeze_at_the_same_step_when_a_run_goes_on(classifier, make_trainer, make_loader, tmp_path):
    assert resumes(lambda: FreezeSigns(0.5), classifier, make_trainer, make_loader, tmp_path)


def test_freezing_refuses_what_it_cannot_do(classifier, make_trainer, make_loader):
    with pytest.raises(InputError, match="no binary weights"):
        fit(classifier(small(binary_weights=False)), make_trainer, make_loader, FreezeSigns())
    with pytest.raises(InputError, match="share=0"):
        FreezeSigns(0)
    with pytest.raises(InputError, match="no end"):
        fit(classifier(), make_trainer, make_loader, FreezeSigns(), max_epochs=-1)


# Signs that should not stay


def test_the_pull_is_on_weights_that_have_not_flipped_and_not_on_masked_ones(classifier, make_trainer, make_loader):
    """Against the same run without, whose gradients are the same up to the third step, after flips have been seen."""
    strength, steps = 0.5, []
    mask = torch.rand(8, 4, 3, 3) < 0.7

    class Watch(Callback):
        """The gradient before and after, and the signs of every step."""

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            layer = layer_in(pl_module.backbone)
            steps.append((layer.weight.grad.clone(), weight_signs(layer), layer.weight.detach().clone()))

    network = small()
    layer_in(network).set_mask(mask)
    module = classifier(network, adam(0.05))
    callbacks = (Watch(), SilentWeightDecay(strength, momentum=0.5, threshold=0.2), Watch())
    trainer = fit(module, make_trainer, make_loader, *callbacks, max_steps=6, max_epochs=3)
    rates, shares = torch.zeros(8, 4, 3, 3), []
    for i, ((before, signs, weight), (after, _, _)) in enumerate(zip(steps[::2], steps[1::2], strict=True)):
        if i:
            rates = 0.5 * rates + 0.5 * (signs * steps[2 * i - 2][1] < 0)
        layer = BinaryConv2d(4, 8, 3)
        layer.set_mask(mask)
        with torch.no_grad():
            layer.weight.copy_(weight)
        torch.testing.assert_close(after - before, strength * silence_gradient(layer, rates < 0.2))
        assert not (after - before)[~mask].any()
        shares.append((rates < 0.2)[mask].double().mean())
    assert 0 < shares[-1] < 1
    assert shares[0] == 1
    assert 0 < trainer.callback_metrics["signs/silent"] < 1


def test_the_pull_goes_on(classifier, make_trainer, make_loader, tmp_path):
    make = lambda: SilentWeightDecay(0.5, momentum=0.5, threshold=0.2)  # noqa: E731
    assert resumes(make, classifier, make_trainer, make_loader, tmp_path)


def test_the_pull_refuses_what_it_cannot_do(classifier, make_trainer, make_loader):
    for options in ({"binary_weights": False}, {"weight_transform": "biper"}):
        with pytest.raises(InputError, match="no binary weights that are trained and not transformed"):
            fit(classifier(small(**options)), make_trainer, make_loader, SilentWeightDecay())
    for options in ({"strength": 0.0}, {"momentum": 1.0}, {"threshold": 0.0}):
        with pytest.raises(InputError, match=next(iter(options))):
            SilentWeightDecay(**options)


# Flips that are steered


def flips_of(signs):
    """The share of flips in each step, all layers together."""
    counts = [[count_flips(a, b) for a, b in zip(x, y, strict=True)] for x, y in pairwise(signs)]
    return [sum(flipped for flipped, _ in step) / sum(compared for _, compared in step) for step in counts]


def all_signs(network):
    return [weight_signs(m) for m in network.modules() if isinstance(m, BinaryConv2d) and m.binary_weights]


class Wandering(torch.optim.SGD):
    """Takes steps in random directions, whose length is the learning rate."""

    def step(self, closure=None):
        closure()
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.add_(torch.randn_like(p), alpha=group["lr"])


@pytest.mark.parametrize("lr", [1e-3, 1e-1])
def test_as_many_signs_flip_as_are_wanted(lr, classifier, make_trainer, make_loader):
    """Of weights of size 1/6 with steps that flip a tenth of it, or several times as much."""
    found = {}
    for name, callbacks in {"free": (), "steered": (FlipSchedule(0.03, "constant", momentum=0.5),)}.items():
        torch.manual_seed(0)
        record = Record(all_signs)
        module = classifier(small(), lambda m: Wandering(m.parameters(), lr=lr))
        module.training_step = lambda batch, batch_idx: layer_in(module.backbone).gain.sum()  # noqa: B023
        fit(module, make_trainer, make_loader, *callbacks, record, max_epochs=28)
        shares = flips_of(record.found)
        found[name] = sum(shares[-20:]) / 20
    assert found["steered"] == pytest.approx(0.03, rel=0.15)
    assert not 0.4 < found["free"] / 0.03 < 2


def test_a_step_is_scaled_and_all_else_is_not(classifier, make_trainer, make_loader):
    """From the same gradients: after one step of factor 1, the second one, whose factor is known."""
    found = []
    for callbacks in ((), (FlipSchedule(0.5, "constant", momentum=0.0),)):
        torch.manual_seed(0)
        network = small()
        layers = Record(lambda network: layer_in(network).weight.detach().clone())
        gains = Record(lambda network: layer_in(network).gain.detach().clone())
        signs = Record(all_signs)
        fit(classifier(network, adam(0.01)), make_trainer, make_loader, *callbacks, layers, gains, signs, max_epochs=1)
        found.append((layers.found, gains.found, signs.found))
    (free, free_gains, _), (scaled, scaled_gains, signs) = found
    assert torch.equal(free[0], scaled[0])
    assert torch.equal(free_gains[1], scaled_gains[1])
    torch.manual_seed(0)
    (share,) = flips_of([all_signs(small()), signs[0]])
    factor = torch.exp(torch.tensor((1 - share / 0.5) / 4))
    assert factor > 1.1
    torch.testing.assert_close(scaled[1] - scaled[0], factor * (free[1] - free[0]))


def test_what_is_wanted_and_what_flips_is_logged(classifier, make_trainer, make_loader):
    trainer = fit(classifier(), make_trainer, make_loader, FlipSchedule(0.02, "linear"), max_epochs=2)
    assert trainer.callback_metrics["signs/wanted"] == 0
    assert 0 < trainer.callback_metrics["signs/flipped_in_step"] < 0.05
    assert 0.8 < trainer.callback_metrics["signs/step_factor"] < 1.2


def test_steered_flips_go_on(classifier, make_trainer, make_loader, tmp_path):
    assert resumes(FlipSchedule, classifier, make_trainer, make_loader, tmp_path)


def test_a_schedule_of_flips_refuses_what_it_cannot_do(classifier, make_trainer, make_loader):
    with pytest.raises(InputError, match="no binary weights"):
        fit(classifier(small(binary_weights=False)), make_trainer, make_loader, FlipSchedule())
    with pytest.raises(InputError, match="no end"):
        fit(classifier(), make_trainer, make_loader, FlipSchedule(), max_epochs=-1)
    for options in ({"rate": 0.0}, {"momentum": 1.0}, {"schedule": "step"}):
        with pytest.raises(InputError, match=next(iter(options))):
            FlipSchedule(**options)


# Weights that stay


@pytest.mark.parametrize(("norm", "classifier_too"), [("bn_free", True), ("bn_free", False), ("batch_norm", True)])
def test_only_scales_and_shifts_are_trained(norm, classifier_too, classifier, make_trainer, make_loader):
    network = small(norm=norm)
    affine = {n for n, p in network.named_parameters() if n.endswith("gain") or p.dim() == 1}
    head = {"classifier.weight", "classifier.bias"}
    expected = (affine | head) if classifier_too else affine - head
    before = {name: value.clone() for name, value in network.named_parameters()}
    module = classifier(network, lambda m: torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.1))
    trainer = fit(module, make_trainer, make_loader, AffineOnly(classifier_too))
    held = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert {name for name, p in network.named_parameters() if id(p) in held} == expected
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad is (name in expected), name
        assert torch.equal(parameter, before[name]) or name in expected, name
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == sum(
        p.numel() for name, p in network.named_parameters() if name in expected
    )
    assert trainer.callback_metrics["gains/off"] == 0


def test_gains_that_are_off_are_counted(classifier, make_trainer, make_loader):
    network = small()
    with torch.no_grad():
        network.body[0][0].convolution.gain.fill_(1e-3)
    optimizer = lambda m: torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.0)  # noqa: E731
    trainer = fit(classifier(network, optimizer), make_trainer, make_loader, AffineOnly())
    gains = sum(p.numel() for name, p in network.named_parameters() if name.endswith("gain"))
    assert trainer.callback_metrics["gains/off"].item() == pytest.approx(4 / gains)


def test_affine_training_refuses_a_network_without_any(classifier, make_trainer, make_loader):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.classifier = nn.Linear(3 * 8 * 8, 10)

        def forward(self, images):
            return self.classifier(images.flatten(1))

    with pytest.raises(InputError, match="no gains, shifts or normalisers"):
        fit(classifier(Plain()), make_trainer, make_loader, AffineOnly())


# Periodic weights


@pytest.mark.parametrize("kind", ["cos2", "sin2"])
def test_the_regulariser_is_the_gradient_of_its_mean(kind, classifier, make_trainer, make_loader):
    found = []
    for callbacks in ((), (PeriodicRegularizer(kind, 0.5),)):
        torch.manual_seed(0)
        network = small(weight_transform="biper")
        weight = layer_in(network).weight
        start = weight.detach().clone().requires_grad_()
        module = classifier(network, lambda m: torch.optim.SGD(m.parameters(), lr=1.0))
        fit(module, make_trainer, make_loader, *callbacks, max_steps=1)
        found.append(weight.detach())
    square = (torch.sin if kind == "sin2" else torch.cos)(20 * start).square()
    (gradient,) = torch.autograd.grad(0.5 * square.mean(), start)
    torch.testing.assert_close(found[0] - found[1], gradient, rtol=1e-3, atol=1e-6)


def test_the_regulariser_refuses_what_is_not_periodic(classifier, make_trainer, make_loader):
    for transform in (None, torch.sin, "compander"):
        with pytest.raises(InputError, match="weight_transform='biper'"):
            fit(classifier(small(weight_transform=transform)), make_trainer, make_loader, PeriodicRegularizer())
    for options in ({"kind": "tan2"}, {"strength": 0.0}):
        with pytest.raises(InputError, match=next(iter(options))):
            PeriodicRegularizer(**options)


# Averaged weights in place of a schedule


class TwoSets(torch.optim.SGD):
    """Adds 1 to the weights in training, as a stand-in for the other set."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.0)
        self.training, self.calls = False, []

    def _shift(self, by):
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.add_(by)

    def train(self):
        self.calls.append("train")
        self._shift(0 if self.training else 1)
        self.training = True

    def eval(self):
        self.calls.append("eval")
        self._shift(-1 if self.training else 0)
        self.training = False


def test_gradients_are_taken_at_one_set_and_the_other_is_kept(classifier, make_trainer, make_loader, tmp_path):
    seen = Record(lambda network: network.stem.convolution.weight.mean().item())
    module = classifier(small(), lambda m: TwoSets(m.parameters()))
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = make_trainer(ScheduleFree(), seen, keep, enable_checkpointing=True)
    trainer.fit(module, make_loader(), make_loader())
    assert trainer.optimizers[0].calls == ["train", "eval"] * 2
    assert all(abs(value) < 0.5 for value in seen.found)
    kept = torch.load(tmp_path / "step=1.ckpt", weights_only=True)["state_dict"]
    assert kept["backbone.stem.convolution.weight"].mean().abs() < 0.5


def test_schedule_free_refuses_other_optimizers(classifier, make_trainer, make_loader):
    with pytest.raises(InputError, match="optimizer=SGD has no train"):
        fit(classifier(), make_trainer, make_loader, ScheduleFree())
