"""Skewness and kurtosis of weights against known laws, and what the penalty does not depend on."""

import pytest
import torch

from bnfree.backbones import ReActNet18
from bnfree.errors import InputError
from bnfree.weight_shape import layers_with_shape, skewness_and_kurtosis, weight_shape_penalty


def test_moments_of_known_laws():
    uniform = torch.linspace(-1, 1, 20001, dtype=torch.float64)
    skew, kurtosis = skewness_and_kurtosis(uniform)
    assert skew.item() == pytest.approx(0, abs=1e-9)
    assert kurtosis.item() == pytest.approx(1.8, abs=1e-3)
    assert skewness_and_kurtosis(torch.tensor([1.0, -1.0] * 8))[1].item() == pytest.approx(1)
    exponential = -torch.log(torch.linspace(1e-6, 1 - 1e-6, 200001, dtype=torch.float64))
    skew, kurtosis = skewness_and_kurtosis(exponential)
    assert skew.item() == pytest.approx(2, abs=0.01)
    assert kurtosis.item() == pytest.approx(9, abs=0.1)


def test_factor_and_shift_change_nothing_and_masked_weights_do_not_count():
    torch.manual_seed(0)
    weight = torch.rand(6, 5, dtype=torch.float64) ** 2
    expected = skewness_and_kurtosis(weight)
    torch.testing.assert_close(skewness_and_kurtosis(3 * weight + 7), expected)
    padded, mask = torch.cat([weight, torch.full((2, 5), 99.0, dtype=torch.float64)]), torch.ones(8, 5).bool()
    mask[6:] = False
    torch.testing.assert_close(skewness_and_kurtosis(padded, mask), expected)


def test_symmetric_uniform_weights_are_left_alone():
    layer = torch.nn.Linear(20, 1000, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-1, 1, 20000, dtype=torch.float64).view_as(layer.weight))
    penalty, _ = weight_shape_penalty({"layer": layer}, target=skewness_and_kurtosis(layer.weight)[1].item())
    (gradient,) = torch.autograd.grad(penalty, layer.weight)
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("standardized", [False, True])
def test_the_penalty_is_its_formula_without_the_first_layer(standardized):
    torch.manual_seed(0)
    network = ReActNet18(num_classes=4, width=2).double()
    layers = layers_with_shape(network)
    assert "stem.convolution" not in layers
    assert list(layers)[-1] == "classifier"
    penalty, kurtoses = weight_shape_penalty(layers, standardized)
    skews, tails = [], []
    for name, layer in layers.items():
        w = layer.weight.detach()
        if standardized and name != "classifier":
            w = (
                (w - w.mean((1, 2, 3), keepdim=True))
                / w.std((1, 2, 3), correction=0, keepdim=True)
                / w[0].numel() ** 0.5
            )
        z = (w - w.mean()) / w.std(correction=0)
        skews.append((z**3).mean())
        tails.append((z**4).mean())
        assert kurtoses[name].item() == pytest.approx(tails[-1].item(), rel=1e-3)
    expected = torch.stack(skews).square().mean() + 0.015 * (torch.stack(tails) - 1.8).square().mean()
    assert penalty.item() == pytest.approx(expected.item(), rel=1e-3)
    with pytest.raises(InputError, match="layers holds none"):
        weight_shape_penalty({})
