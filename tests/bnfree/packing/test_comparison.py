"""What the comparison counts."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from packable_networks import TwoUnits, images, scatter

from bnfree.errors import InputError
from bnfree.packing import PackedNetwork, compare, pack
from bnfree.packing.bits import TernaryWeight


def test_activations_on_their_threshold_are_counted():
    network = scatter(TwoUnits(width=3))
    with torch.no_grad():
        network.stem.convolution.gain.zero_()
        network.body[0].rsign.shift.copy_(torch.tensor([0.0, 5e-7, 2e-6]))
    x = images(0, 2, 2, 5, 4)
    packed = pack(network, "float32")
    assert compare(network, packed, x).near_threshold == 2 * 2 * 5 * 4
    assert compare(network, packed, x, tolerance=1e-7).near_threshold == 2 * 5 * 4
    assert compare(network, packed, x, tolerance=1e-5).near_threshold == 3 * 2 * 5 * 4


def test_in_a_layer_of_large_signals_nearness_is_relative():
    network = scatter(TwoUnits(width=3, norm="none"))
    with torch.no_grad():
        network.stem.convolution.weight.zero_()
        network.body[0].rsign.shift.copy_(torch.tensor([1e3, -1e3, 5e-4]))
    x = images(0, 2, 2, 5, 4)
    assert compare(network, pack(network, "float32"), x).near_threshold == 2 * 5 * 4


def test_a_single_wrong_bit_is_not_explained():
    network = scatter(TwoUnits(width=3))
    x = images(0, 8, 2, 6, 6)
    packed = pack(network, "float32")
    assert compare(network, packed, x).unexplained == 0
    layers = packed.layers
    weight = layers.units[1].weight
    signs = weight.signs.clone()
    signs[0] ^= 1
    wrong = dataclasses.replace(
        layers.units[1], weight=TernaryWeight(weight.shape, signs, weight.survivors, weight.scale)
    )
    result = compare(network, PackedNetwork(dataclasses.replace(layers, units=(layers.units[0], wrong))), x)
    assert result.unexplained > 0
    assert result.largest_difference > 1e-3


def test_differences_are_those_of_the_logits():
    network = scatter(TwoUnits())
    packed, x = pack(network, "int8", "int8"), images(0, 8, 2, 6, 6)
    expected, logits = network(x).detach(), packed(x)
    result = compare(network, packed, x)
    assert result.images == 8
    assert result.largest_difference == pytest.approx((expected - logits).abs().max().item())
    relative = (expected - logits).abs().amax(1) / expected.abs().amax(1)
    assert result.largest_relative_difference == pytest.approx(relative.max().item())
    assert result.agreement == (expected.argmax(1) == logits.argmax(1)).double().mean().item()


def test_the_network_is_left_as_it_was():
    network = scatter(TwoUnits(norm="batch_norm")).train()
    network.stem.eval()
    modes = [module.training for module in network.modules()]
    mean = network.body[0].batch_norm.running_mean.clone()
    compare(network, pack(network), images(0, 2, 2, 6, 6))
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(network.body[0].batch_norm.running_mean, mean)
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_no_images_are_refused():
    network = scatter(TwoUnits())
    with pytest.raises(InputError, match="images"):
        compare(network, pack(network), torch.zeros(0, 2, 6, 6))
