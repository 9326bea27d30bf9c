"""Calibration, measured again by hooks of our own in a second forward pass."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnfree.activations import RPReLU
from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.backbones.residual import ResidualUnit
from bnfree.calibration import calibrate, calibrate_gains, calibrate_stem, is_calibrated
from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError

NETWORKS = [pytest.param(ReActNet18, 8, id="18"), pytest.param(ReActNetA, 4, id="A")]


def fresh(kind: type[nn.Module] = ReActNet18, width: int = 8, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return kind(num_classes=10, stem="cifar", width=width, **options)


def images(count: int = 16) -> Tensor:
    return 0.3 + 1.4 * torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def inputs_of_units(network: nn.Module, batch: Tensor) -> list[tuple[str, ResidualUnit, Tensor]]:
    seen: list[tuple[str, ResidualUnit, Tensor]] = []
    hooks = [
        module.register_forward_pre_hook(
            lambda module, args, name=name: seen.append((name, module, args[0].detach().double()))
        )
        for name, module in network.named_modules()
        if isinstance(module, ResidualUnit)
    ]
    with torch.no_grad():
        network(batch)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize(("kind", "width"), NETWORKS)
@pytest.mark.parametrize("options", [{}, {"binary_weights": False}, {"alpha": 1.0}, {"reference": True}])
def test_every_unit_sees_unit_scale_and_balanced_channels(kind, width, options):
    network = fresh(kind, width, **options)
    report = calibrate(network, images())
    seen = inputs_of_units(network, images())
    assert [record.name for record in report] == [name for name, _, _ in seen]
    for record, (name, unit, x) in zip(report, seen, strict=True):
        scaled = unit.beta.double() * x
        std = scaled.transpose(0, 1).flatten(1).std(1, correction=0)
        assert std.mean().item() == pytest.approx(1, abs=1e-4), name
        mean = (scaled + unit.rsign.shift.double().view(1, -1, 1, 1)).mean((0, 2, 3))
        assert mean.abs().max().item() <= 1e-4, name
        assert record.beta == unit.beta.item()
        assert record.input_std == pytest.approx(1 / record.beta, rel=1e-5)
        raw = x.transpose(0, 1).flatten(1)
        drift = (raw.mean(1).abs() / raw.std(1, correction=0).clamp(min=1e-12)).mean().item()
        assert record.mean_drift == pytest.approx(drift, rel=1e-3)
    analytic = [unit.beta.item() for _, unit, _ in inputs_of_units(fresh(kind, width, **options), images())]
    assert [record.beta_before for record in report] == analytic


def test_deterministic_and_without_random_numbers():
    first, second = fresh(), fresh()
    state = torch.get_rng_state()
    reports = [calibrate(network, images()) for network in (first, second)]
    assert torch.equal(torch.get_rng_state(), state)
    assert reports[0] == reports[1]
    # Calibrating again finds what it set.
    again = calibrate(first, images())
    assert [r.beta_before for r in again] == [r.beta for r in reports[0]]
    assert [r.beta for r in again] == pytest.approx([r.beta for r in reports[0]], rel=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_weights_modes_hooks_and_gradients_are_left_alone(training):
    network = fresh().train(training)
    network.body[0].eval()
    modes = [module.training for module in network.modules()]
    before = {key: value.clone() for key, value in network.state_dict().items()}
    tensors = {key: value.data_ptr() for key, value in network.state_dict().items()}
    batch = images()
    kept = batch.clone()
    calibrate(network, batch)
    assert [module.training for module in network.modules()] == modes
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key in before if key.endswith((".beta", ".rsign.shift"))}
    assert {key: value.data_ptr() for key, value in network.state_dict().items()} == tensors
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in network.modules())
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    assert torch.equal(batch, kept)


def test_the_state_dict_carries_it_to_a_fresh_network():
    network = fresh()
    calibrate(network, images())
    other = fresh()
    other.load_state_dict(copy.deepcopy(network.state_dict()), strict=True)
    assert torch.equal(other(images()), network(images()))
    assert other.body[2][1].beta.item() == network.body[2][1].beta.item() != fresh().body[2][1].beta.item()
    assert "body.2.1.beta" in network.state_dict()
    assert all("beta" not in name for name, _ in network.named_parameters())


def test_a_dead_trunk_gives_a_finite_beta():
    network = fresh()
    with torch.no_grad():
        network.stem.convolution.gain.zero_()
    calibrate(network, images())
    assert all(torch.isfinite(value).all() for value in network.state_dict().values())


@pytest.mark.parametrize("reference", [True, False])
def test_who_wants_calibration(reference):
    assert fresh(reference=reference).wants_calibration is not reference
    assert not fresh(norm="batch_norm").wants_calibration
    assert not fresh(norm="none").wants_calibration


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (torch.zeros(3, 8, 8), r"images has shape \(3, 8, 8\)"),
        (torch.zeros(0, 3, 8, 8), r"images has shape \(0, 3, 8, 8\)"),
        (torch.full((2, 3, 8, 8), float("nan")), "not finite"),
        (torch.full((2, 3, 8, 8), float("inf")), "not finite"),
    ],
)
def test_wrong_images_change_nothing(batch, words):
    network = fresh()
    with pytest.raises(InputError, match=words):
        calibrate(network, batch)
    untouched: dict[str, Any] = fresh().state_dict()
    assert all(torch.equal(value, untouched[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("network", [fresh(norm="batch_norm"), fresh(norm="none"), nn.Linear(3, 3)])
def test_networks_without_beta(network):
    with pytest.raises(InputError, match="no residual unit with a beta"):
        calibrate(network, images())


def test_hooks_are_gone_after_a_failure():
    network = fresh()
    with pytest.raises(RuntimeError):
        calibrate(network, torch.zeros(2, 5, 8, 8))
    assert not any(module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize(("kind", "width"), NETWORKS)
def test_full_calibration_levels_every_convolution_and_centres_the_trunk(kind, width):
    network = fresh(kind, width)
    latents = {name: p.clone() for name, p in network.named_parameters() if name.endswith("weight")}
    calibrate(network, images(), full=True)
    assert all(torch.equal(p, latents[name]) for name, p in network.named_parameters() if name in latents)
    seen: list[tuple[str, Tensor]] = []
    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, BinaryConv2d):
            hooks.append(module.register_forward_hook(lambda m, i, o, n=name: seen.append((f"{n} std", o))))
        elif isinstance(module, RPReLU):
            hooks.append(
                module.register_forward_hook(
                    lambda m, i, o, n=name: seen.extend(
                        [(f"{n} mean in", i[0] + m.shift_in.view(1, -1, 1, 1)), (f"{n} mean out", o)]
                    )
                )
            )
    with torch.no_grad():
        network(images())
    assert len(seen) > 40
    for name, value in seen:
        channels = value.double().transpose(0, 1).flatten(1)
        if name.endswith("std"):
            spread = channels.std(1, correction=0)
            # A channel that does not vary over these few images keeps its gain.
            assert ((spread - 1).abs() < 1e-3)[spread > 1e-5].all(), name
        else:
            assert channels.mean(1).abs().max() < 1e-4, name
    for _, unit, x in inputs_of_units(network, images()):
        assert (unit.beta * x).transpose(0, 1).flatten(1).std(1, correction=0).mean().item() == pytest.approx(
            1, abs=1e-4
        )


def test_full_calibration_of_a_dead_filter_changes_nothing_in_it():
    network = fresh()
    layer = network.body[0][0].convolution
    mask = torch.ones_like(layer.weight, dtype=torch.bool)
    mask[2] = False
    layer.set_mask(mask)
    calibrate(network, images(), full=True)
    assert layer.gain[2].item() == 1
    assert all(torch.isfinite(value).all() for value in network.state_dict().values())


@pytest.mark.parametrize(("kind", "width"), NETWORKS)
@pytest.mark.parametrize("full", [True, False])
def test_a_network_knows_from_its_weights_alone_that_it_is_calibrated(kind, width, full):
    network, untouched = fresh(kind, width), fresh(kind, width)
    names, start = list(network.state_dict()), copy.deepcopy(network.state_dict())
    assert not is_calibrated(network)
    calibrate(network, images(), full=full)
    assert is_calibrated(network)
    assert is_calibrated(copy.deepcopy(network))
    assert list(network.state_dict()) == names
    untouched.load_state_dict({name: value.clone() for name, value in network.state_dict().items()}, strict=True)
    assert is_calibrated(untouched)
    network.load_state_dict(start)
    assert not is_calibrated(network)


def test_trained_weights_count_as_calibrated():
    network = fresh()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network(images()).logsumexp(1).sum().backward()
    optimizer.step()
    assert is_calibrated(network)


@pytest.mark.parametrize("network", [fresh(norm="batch_norm"), fresh(norm="none"), nn.Linear(3, 3)])
def test_what_cannot_be_calibrated_is_not(network):
    assert not is_calibrated(network)


def output_stds(network: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    """Standard deviation per channel of every 3x3 (18) or body (A) convolution's output, by hooks of our own."""
    seen: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(
            lambda m, args, out, name=name: seen.update({name: out.transpose(0, 1).flatten(1).std(1, correction=0)})
        )
        for name, module in network.named_modules()
        if isinstance(module, BinaryConv2d)
    ]
    with torch.no_grad():
        network(batch)
    for hook in hooks:
        hook.remove()
    return seen


def handed_over(kind: type[nn.Module], width: int, **options: object) -> tuple[nn.Module, nn.Module]:
    """A calibrated network of step 1 and one of step 2 with its weights, in float64."""
    before = fresh(kind, width, binary_weights=False).double()
    calibrate(before, images(64).double(), full=True)
    after = fresh(kind, width, binary_weights=True, **options).double()
    after.load_state_dict(before.state_dict())
    return before, after


@pytest.mark.parametrize(("kind", "width"), NETWORKS)
def test_gains_give_every_binary_convolution_the_strength_that_it_had_with_real_weights(kind, width):
    before, after = handed_over(kind, width)
    batch = images(64).double()
    wanted, kept = output_stds(before, batch), copy.deepcopy(after.state_dict())
    shrunk = output_stds(after, batch)
    binary = [name for name, m in after.named_modules() if isinstance(m, BinaryConv2d) and m.binary_weights]
    shrinkage = [(shrunk[name].mean() / wanted[name].mean()).item() for name in binary]
    assert 0.6 < sum(shrinkage) / len(binary) < 0.85, shrinkage
    factors = calibrate_gains(after, batch)
    assert list(factors) == binary
    found = output_stds(after, batch)
    for name in binary:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            after.state_dict()[f"{name}.gain"], kept[f"{name}.gain"] * factors[name].view(-1, 1, 1, 1)
        )
    changed = {name for name, value in after.state_dict().items() if not torch.equal(value, kept[name])}
    assert changed == {f"{name}.gain" for name in binary}
    assert all(module.binary_weights for name, module in after.named_modules() if name in binary)
    assert not any(module._forward_hooks for module in after.modules())
    # Again, now that the gains are no longer those of real weights: nothing but rounding.
    for factor in calibrate_gains(after, batch, before).values():
        torch.testing.assert_close(factor, torch.ones_like(factor), rtol=1e-12, atol=1e-12)


def test_the_factor_is_that_of_gaussian_weights_where_inputs_are_independent():
    torch.manual_seed(0)
    layer = BinaryConv2d(256, 32, 3, padding=1).double()
    batch = torch.randn(64, 256, 8, 8).double().sign()
    factor = calibrate_gains(nn.Sequential(layer), batch)["0"]
    assert factor.mean().item() == pytest.approx((torch.pi / 2) ** 0.5, rel=0.01)
    assert factor.std().item() < 0.02


@pytest.mark.parametrize("fast", [[], ["int8_forward", "bf16_backward"]])
@pytest.mark.parametrize("lean", [True, False])
def test_gains_are_the_same_however_the_network_computes(lean, fast):
    before, after = handed_over(ReActNet18, 8)
    if fast and not lean:
        return
    other = fresh(binary_weights=True, lean=lean, fast=fast)
    other.load_state_dict(before.state_dict())
    expected, found = calibrate_gains(after, images().double()), calibrate_gains(other, images())
    for name, factor in expected.items():
        # Single activations may fall on the other side of their threshold in float32.
        torch.testing.assert_close(found[name].double(), factor, rtol=0.05, atol=0.05)


def test_gains_of_a_pruned_network_and_of_a_dead_filter():
    before, after = handed_over(ReActNet18, 8)
    masks = {n: torch.rand(m.weight.shape) < 0.3 for n, m in after.named_modules() if isinstance(m, BinaryConv2d)}
    masks["body.0.0.convolution"][2] = False
    for network in (before, after):
        for name, mask in masks.items():
            dict(network.named_modules())[name].set_mask(mask)
    batch = images(64).double()
    factors = calibrate_gains(after, batch)
    assert factors["body.0.0.convolution"][2] == 1
    wanted, found = output_stds(before, batch), output_stds(after, batch)
    for name in factors:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-12, atol=1e-12)


def test_gains_refuse_what_they_cannot_set():
    before, after = handed_over(ReActNet18, 8)
    with pytest.raises(InputError, match="no binary convolution with a gain"):
        calibrate_gains(before, images().double())
    with pytest.raises(InputError, match=r"images has shape \(0, 3, 16, 16\)"):
        calibrate_gains(after, images(0).double())
    with pytest.raises(InputError, match=r"original has no convolution 'body.0.0.convolution' of 8 filters"):
        calibrate_gains(after, images().double(), fresh(width=4).double())
    with pytest.raises(RuntimeError):
        calibrate_gains(after, torch.zeros(2, 5, 8, 8).double())
    assert all(m.binary_weights for n, m in after.named_modules() if n.endswith(".convolution") and "body" in n)


@pytest.mark.parametrize(("kind", "width"), NETWORKS)
@pytest.mark.parametrize("strength", [8, 1 / 8, 0.3])
def test_a_stem_takes_up_the_strength_of_the_images(kind, width, strength):
    network = fresh(kind, width).double()
    calibrate(network, images().double(), full=True)
    with torch.no_grad():
        before = network(images().double())
        kept = copy.deepcopy(network.state_dict())
        assert calibrate_stem(network, strength)
        torch.testing.assert_close(network(strength * images().double()), before, rtol=1e-9, atol=1e-9)
    assert {n for n, v in network.state_dict().items() if not torch.equal(v, kept[n])} == {"stem.convolution.gain"}
    assert not calibrate_stem(fresh(norm="batch_norm"), strength)
    assert not calibrate_stem(nn.Linear(3, 3), strength)
