import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune

from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.convolution import BinaryConv2d
from bnfree.diagnostics import standardized_layers, weight_statistics


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def convolution(masked=False, **kwargs):
    layer = BinaryConv2d(6, 8, 3, padding=1, **kwargs)
    nn.init.uniform_(layer.gain, 0.5, 2)
    if masked:
        layer.set_mask(torch.rand_like(layer.weight) < 0.4)
    return layer


def kinds(layer, tolerance=1e-3):
    return list(weight_statistics(layer, "layer").problems(tolerance))


NETWORKS = {
    "reactnet18": lambda **kw: ReActNet18(width=4, **kw),
    "reactnet_a": lambda **kw: ReActNetA(num_classes=10, width=4, stem="cifar", **kw),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("options", [{}, {"binary_weights": False}, {"reference": True}], ids=str)
@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS.keys())
def test_fresh_networks_are_sound(build, options, masked):
    layers = standardized_layers(build(**options))
    assert len(layers) >= 20
    for name, layer in layers.items():
        if masked:
            layer.set_mask(torch.rand_like(layer.weight) < 0.3)
        statistics = weight_statistics(layer, name)
        assert statistics.problems(1e-3) == {}
        expected = 1.0 if layer.mask is None else layer.mask.double().mean().item()
        if statistics.dead_filters == 0:
            assert statistics.mask_density == pytest.approx(expected)
        assert statistics.density == statistics.mask_density


@pytest.mark.parametrize("norm", ["batch_norm", "none"])
def test_networks_without_standardisation_have_nothing_to_check(norm):
    assert standardized_layers(ReActNet18(width=4, norm=norm)) == {}


@pytest.mark.parametrize("options", [{"stride": 2}, {"groups": 2}, {"padding": 3}, {"stride": 3, "padding": 2}])
def test_every_kind_of_convolution_is_sound(options):
    arguments = {"padding": 1, **options}
    assert kinds(BinaryConv2d(6, 8, 3, **arguments)) == []
    assert kinds(BinaryConv2d(6, 8, 1, **arguments)) == []


@pytest.mark.parametrize("binary", [True, False])
def test_layer_and_random_state_are_left_alone(binary):
    layer = convolution(masked=True, binary_weights=binary)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    random_state = torch.get_rng_state()
    weight_statistics(layer)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert layer.binary_weights is binary
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    assert layer.weight.grad is None


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("value", [0.0, 0.3])
def test_constant_row_is_dead(binary, masked, value):
    layer = convolution(masked, binary_weights=binary)
    with torch.no_grad():
        layer.weight[3] = value
    statistics = weight_statistics(layer, "stem")
    assert statistics.dead_filters == 1
    assert statistics.pruned_filters == 0
    assert "stem has 1 dead filters of 8" in statistics.problems(1e-3)["dead"]


def test_gain_of_zero_is_dead_and_a_small_std_too():
    layer = convolution()
    with torch.no_grad():
        layer.gain[2] = 0
        layer.weight[5] = layer.weight[5] / layer.weight[5].std() * 5 * layer.eps
        layer.weight[6] = layer.weight[6] / layer.weight[6].std() * 20 * layer.eps
    assert weight_statistics(layer).dead_filters == 2


def test_filter_removed_by_the_mask_is_counted_and_no_problem():
    layer = convolution()
    mask = torch.ones_like(layer.weight)
    mask[1] = 0
    layer.set_mask(mask)
    statistics = weight_statistics(layer)
    assert (statistics.dead_filters, statistics.pruned_filters) == (1, 1)
    assert statistics.problems(1e-3) == {}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(bad):
    layer = convolution(binary_weights=False)
    with torch.no_grad():
        layer.weight[2, 0, 0, 0] = bad
        layer.gain[4] = bad
    statistics = weight_statistics(layer, "layer")
    assert statistics.non_finite == 2 * layer.weight[0].numel()
    assert next(iter(statistics.problems(1e-3))) == "non_finite"
    assert "layer has 108 effective weights" in statistics.problems(1e-3)["non_finite"]
    assert statistics.row_mean < 1e-5


def plain_weight(layer):
    return lambda: layer.gain * layer.weight


def shifted_weight(layer):
    original = layer.effective_weight
    return lambda: original() + 0.01


def test_overwritten_effective_weight():
    layer = convolution(binary_weights=False)
    layer.effective_weight = plain_weight(layer)
    assert {"formula", "row_mean", "row_energy"} <= set(kinds(layer))
    layer = convolution(binary_weights=True)
    layer.effective_weight = shifted_weight(layer)
    statistics = weight_statistics(layer)
    # A binary layer convolves with its signs and scales afterwards, so it does not use what the method now returns.
    assert {"formula", "forward", "row_mean"} <= set(statistics.problems(1e-3))
    assert statistics.row_mean > 0.01


def test_row_mean_and_energy_are_the_worst_of_the_rows():
    layer = convolution(binary_weights=False)
    original = layer.effective_weight

    def shifted():
        weight = original().clone()
        weight[1] += 0.1 * layer.gain[1] / 54**0.5
        weight[5] *= 3
        return weight

    layer.effective_weight = shifted
    statistics = weight_statistics(layer)
    assert statistics.row_mean == pytest.approx(0.1, rel=1e-4)
    assert statistics.row_energy_error == pytest.approx(8, rel=1e-2)
    assert statistics.formula_error == pytest.approx(
        2 * (original()[5].abs().max() / original()[5].square().mean().sqrt()).item(), rel=1e-4
    )


def test_switched_off_standardisation():
    layer = convolution(binary_weights=False)
    layer.standardize = False
    assert "formula" in kinds(layer)


@pytest.mark.parametrize("binary", [True, False])
def test_replaced_forward(binary):
    layer = convolution(binary_weights=binary)
    layer.forward = lambda x: F.conv2d(x, layer.weight, None, 1, 1)
    assert kinds(layer) == ["forward"]
    layer.forward = lambda x: F.conv2d(x, layer.effective_weight(), None, 1, 0)
    assert math.isinf(weight_statistics(layer).forward_error)
    layer.forward = lambda x: F.conv2d(x, layer.effective_weight(), None, 1, 1) * float("nan")
    assert math.isinf(weight_statistics(layer).forward_error)


def test_one_wrong_weight_in_the_forward_is_noticed():
    layer = convolution()

    def forward(x):
        weight = layer.effective_weight().clone()
        weight[4, 3, 0, 2] *= -1
        return F.conv2d(x, weight, None, 1, 1)

    layer.forward = forward
    assert kinds(layer) == ["forward"]


@pytest.mark.parametrize("geometry", [(1, 2, 1), (1, 3, 1), (3, 2, 1), (3, 3, 2), (2, 4, 1)], ids=str)
def test_every_tap_is_seen_whatever_the_geometry(geometry):
    kernel_size, stride, padding = geometry
    for row in range(kernel_size):
        for column in range(kernel_size):
            layer = BinaryConv2d(2, 2, kernel_size, stride, padding)
            flip = torch.ones_like(layer.weight)
            flip[1, 1, row, column] = -1

            def forward(x, layer=layer, flip=flip):
                return F.conv2d(x, layer.effective_weight() * flip, None, stride, padding)

            assert kinds(layer) == []
            layer.forward = forward
            assert kinds(layer) == ["forward"]


def test_weights_on_the_threshold_may_have_either_sign():
    layer = BinaryConv2d(3, 512, 1)
    ends = torch.randn(512, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.cat([ends, ends.mean(1, keepdim=True)], dim=1).view(512, 3, 1, 1))
    exact = layer.weight.double() - layer.weight.double().mean(1, keepdim=True)
    signs = layer.effective_weight().sign().double()
    assert ((exact >= 0) != (signs > 0)).any()
    assert kinds(layer) == []


@pytest.mark.parametrize("binary", [True, False])
def test_mask_applied_outside(binary):
    layer = convolution(binary_weights=binary)
    prune.l1_unstructured(layer, "weight", 0.8)
    found = kinds(layer)
    assert found[:2] == ["owner", "latent_zeros"]
    layer = convolution(binary_weights=binary)
    with torch.no_grad():
        layer.weight.mul_(torch.rand_like(layer.weight) < 0.2)
    statistics = weight_statistics(layer, "layer")
    # What makes it wrong: the weights come back.
    assert statistics.density == 1
    assert list(statistics.problems(1e-3)) == ["latent_zeros"]
    assert statistics.latent_zeros == pytest.approx((layer.weight == 0).double().mean().item())


def test_parametrized_weight():
    class Double(nn.Module):
        def forward(self, weight):
            return 2 * weight

    layer = convolution()
    parametrize.register_parametrization(layer, "weight", Double())
    assert kinds(layer) == ["owner"]


def test_effective_density_other_than_the_mask():
    layer = convolution(masked=True)
    original = layer.effective_weight

    def denser():
        weight = original().clone()
        weight[weight == 0] = 1e-9
        return weight

    layer.effective_weight = denser
    statistics = weight_statistics(layer)
    assert statistics.density == 1
    assert statistics.mask_density == pytest.approx(layer.mask.double().mean().item())
    assert list(statistics.problems(1e-3)) == ["density"]


def test_values_under_the_mask_do_not_matter():
    layer = convolution(masked=True)
    before = weight_statistics(layer)
    with torch.no_grad():
        layer.weight[~layer.mask] = 1e3
    assert weight_statistics(layer) == before


def test_reduced_precision_is_not_a_problem():
    assert kinds(convolution().bfloat16()) == []
    with torch.autocast("cpu", torch.bfloat16):
        assert weight_statistics(convolution()).forward_error < 1e-5
