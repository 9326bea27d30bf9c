"""LAPP: gradients against those of autograd, and a target that is met."""

import pytest
import torch

from bnfree.compression.layer_thresholds import LayerThresholds, annealed
from bnfree.convolution import BinaryConv2d
from bnfree.diagnostics.weights import weight_statistics

COSTS = {"a": 900.0, "b": 300.0}


def thresholds(target=0.5, rate=0.02, rows=(24, 40)):
    layers = {name: BinaryConv2d(3, count, 3).double() for name, count in zip(COSTS, rows, strict=True)}
    for layer in layers.values():
        layer.gain.data = (torch.rand_like(layer.gain) + 0.1) * (torch.randint(0, 2, layer.gain.shape) * 2 - 1)
    return LayerThresholds(layers, COSTS, target, rate)


def test_the_hard_mask_is_that_of_the_thresholds():
    made = thresholds()
    made.thresholds.copy_(torch.tensor([0.5, 0.3]))
    gains = [layer.gain.detach().clone() for layer in made.layers.values()]
    made.hide()
    for layer, gain, limit in zip(made.layers.values(), gains, (0.5, 0.3), strict=True):
        assert torch.equal(layer.gain, torch.where(gain.abs() >= limit, gain, 0))
    counts = [int((gain.abs() >= limit).sum()) for gain, limit in zip(gains, (0.5, 0.3), strict=True)]
    assert made.operations() == pytest.approx((counts[0] * 900 + counts[1] * 300) / (24 * 900 + 40 * 300))
    off = made.rows_off()
    assert off["b"].tolist() == (gains[1].flatten().abs() < 0.3).nonzero().flatten().tolist()
    # On purpose: no check takes them for filters that training has killed.
    statistics = weight_statistics(made.layers["b"])
    assert (statistics.dead_filters, statistics.pruned_filters) == (0, len(off["b"]))
    made.show()
    assert weight_statistics(made.layers["b"]).pruned_filters == 0
    assert all(torch.equal(layer.gain, gain) for layer, gain in zip(made.layers.values(), gains, strict=True))


def test_gradients_are_those_of_soft_thresholds_and_of_the_term():
    made, x = thresholds(target=0.4), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    made.thresholds.copy_(torch.tensor([0.5, 0.3]))
    temperature, strength = 0.3, 2.0

    def loss(outputs):
        return sum(output.square().sum() / 50 for output in outputs)

    # Straight through: hard in the forward pass, soft in the backward pass, and one soft count of operations.
    limits = made.thresholds.clone().requires_grad_()
    gains = [layer.gain.detach().clone().requires_grad_() for layer in made.layers.values()]
    outputs, operations = [], 0
    for index, (name, layer) in enumerate(made.layers.items()):
        soft = torch.sigmoid((gains[index].abs() - limits[index]) / temperature)
        mask = (gains[index].abs() >= limits[index]) + soft - soft.detach()
        unit = layer.effective_weight().detach() / layer.gain.detach()
        outputs.append(torch.nn.functional.conv2d(x, unit * gains[index] * mask))
        operations = operations + COSTS[name] * mask.sum()
    term = strength * torch.relu(operations / (0.4 * (24 * 900 + 40 * 300)) - 1)
    (loss(outputs) + term).backward()
    assert term > 0
    made.hide()
    loss([layer(x) for layer in made.layers.values()]).backward()
    made.show()
    made.backward(temperature, strength)
    torch.testing.assert_close(made.thresholds.grad, limits.grad)
    for layer, gain in zip(made.layers.values(), gains, strict=True):
        torch.testing.assert_close(layer.gain.grad, gain.grad)


def test_thresholds_rise_until_the_target_is_met_and_then_keep_it():
    # A step is long enough to switch off several rows, which must not go beyond the target.
    made, after = thresholds(rate=0.3), []
    for step in range(200):
        before = made.thresholds.clone()
        met, importance = made.met, made.importances()
        made.backward(annealed(0.5, 0.05, step / 200), 1.0)
        made.step()
        if not met:
            assert bool((made.thresholds >= before).all())
        if made.met:
            after.append(made.operations())
        assert torch.equal(importance, made.importances())
    # A row of the dearer layer is 2.7 % of all.
    assert len(after) > 50
    assert all(0.5 - 0.027 < share <= 0.5 for share in after)


def test_the_target_is_met_to_two_percent_where_rows_are_small():
    made = thresholds(rows=(160, 320))
    for step in range(200):
        made.backward(annealed(0.5, 0.05, step / 200), 1.0)
        made.step()
    assert made.met
    assert 0.48 <= made.operations() <= 0.5


def test_what_is_missing_is_taken_at_once():
    made = thresholds(target=0.3)
    assert made.operations() == pytest.approx(1)
    off = made.meet()
    assert 0.3 - 0.027 < made.operations() <= 0.3
    assert off == sum(len(rows) for rows in made.rows_off().values())


def test_its_state_goes_on_as_it_would_have():
    made = thresholds()
    copies = LayerThresholds(made.layers, COSTS, 0.5, 0.02)
    for _ in range(5):
        made.backward(0.3, 1.0)
        made.step()
    made.hide()
    copies.load_state_dict(made.state_dict())
    assert torch.equal(copies.importances(), made.importances())
    for each in (made, copies):
        for layer in each.layers.values():
            layer.gain.grad = None
        each.backward(0.3, 1.0)
        each.step()
    assert torch.equal(copies.thresholds, made.thresholds)


def test_temperatures():
    assert [annealed(0.5, 0.05, x) for x in (-1, 0, 0.5, 1, 2)] == pytest.approx([0.5, 0.5, 0.025**0.5, 0.05, 0.05])
