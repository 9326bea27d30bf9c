"""Gates of channels: which should be on, what is off, and what learns from what."""

import copy

import pytest
import torch
from torch.nn import functional as F

from bnfree.backbones import ReActNet18
from bnfree.backbones.gated_unit import ChannelGate, GatedUnit, mass_label
from bnfree.costs import count_ops
from bnfree.errors import InputError
from bnfree.packing import pack

SIZES = {"num_classes": 3, "width": 4, "in_channels": 1, "blocks_per_stage": [1, 1, 1, 1]}


def images():
    return torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def gates(network):
    return [unit.gate for unit in network.modules() if isinstance(unit, GatedUnit)]


def test_the_label_is_the_shortest_prefix_with_the_mass():
    responses = torch.rand(50, 12, generator=torch.Generator().manual_seed(0)) ** 3
    responses[:, ::5] = 0
    for mass in (0.2, 0.5, 0.9):
        chosen = mass_label(responses, mass)
        for row, on in zip(responses, chosen, strict=True):
            ranked = row.sort(descending=True).values
            shortest = next(n for n in range(1, 13) if ranked[:n].sum() >= mass * row.sum())
            assert on.sum() == shortest
            assert row[on].min() >= row[~on].max()
    assert mass_label(torch.tensor([[1.0, 5.0, 2.0, 2.0]]), 0.5).tolist() == [[False, True, False, False]]


def test_a_mass_of_one_keeps_all_that_live():
    # Far below the rounding of the sum.
    responses = torch.tensor([[1.0, 0.0, 1e-12, 3.0]])
    assert mass_label(responses, 1.0).tolist() == [[True, False, True, True]]


def test_all_are_on_at_the_start_and_the_network_is_the_same():
    torch.manual_seed(0)
    plain = ReActNet18(**SIZES).eval()
    gated = ReActNet18(**SIZES, gating=True).eval()
    missing = gated.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert {name.rpartition(".")[2] for name in missing} == {"weight", "bias"}
    torch.testing.assert_close(gated(images()), plain(images()), rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="GatedUnit at body.0.0; packing knows ResidualUnits alone"):
        pack(gated)


def test_what_is_off_leaves_the_shortcut_and_all_that_is_behind_it():
    torch.manual_seed(0)
    unit = ReActNet18(**SIZES, gating=True).body[0][0].eval()
    x, off = torch.randn(2, 4, 6, 6), torch.tensor([True, False, True, False])
    everything = unit(x)
    with torch.no_grad():
        unit.gate.predictor.bias[off] = -2.0
    found = unit(x)
    assert torch.equal(found[:, ~off], everything[:, ~off])
    assert torch.equal(found[:, off], unit.rprelu(x)[:, off])
    assert unit.gate.share == 0.5


@pytest.mark.parametrize("decoupled", [True, False])
def test_what_the_losses_teach(decoupled):
    torch.manual_seed(0)
    network = ReActNet18(**SIZES, gating=True).train()
    for gate in gates(network):
        gate.mass, gate.decoupled = 0.5, decoupled
        torch.nn.init.normal_(gate.predictor.weight)
    logits = network(images())
    predictors = {id(p) for gate in gates(network) for p in gate.parameters()}
    sum(gate.loss for gate in gates(network)).backward(retain_graph=True)
    # The gates' loss teaches the predictors and nothing else.
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in predictors), name
    network.zero_grad()
    F.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
    taught = [p.grad is not None and bool(p.grad.any()) for gate in gates(network) for p in gate.parameters()]
    assert not any(taught) if decoupled else all(taught)
    assert network.stem.convolution.weight.grad.any()


def test_a_predictor_learns_which_channels_fire():
    torch.manual_seed(0)
    gate = ChannelGate(3, 4)
    gate.mass = 0.9
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.1)
    x = torch.randn(64, 3, 2, 2)
    x[:, 0] += 4 * (torch.randn(64, 1, 1) > 0) - 2
    # The first two fire where the first channel is positive on average, the others else.
    positive = (x.mean((2, 3))[:, :1] > 0).float()
    branch = torch.cat([positive, positive, 1 - positive, 1 - positive], 1)[:, :, None, None] * torch.ones(64, 4, 2, 2)
    for _ in range(60):
        gate(x, branch)
        optimizer.zero_grad()
        gate.loss.backward()
        optimizer.step()
    assert torch.equal(gate.eval()(x, branch), branch)
    assert gate.share == 0.5
    copy.deepcopy(gate)


def test_operations_are_those_of_the_channels_that_are_on():
    torch.manual_seed(0)
    network = ReActNet18(**SIZES, gating=True).eval()
    for gate in gates(network):
        torch.nn.init.normal_(gate.predictor.weight)
        torch.nn.init.zeros_(gate.predictor.bias)
    shares = {}

    def watch(name):
        return lambda gate, inputs, output: shares.update({name: output.flatten(2).any(2).float().mean().item()})

    units = {name: unit for name, unit in network.named_modules() if isinstance(unit, GatedUnit)}
    for name, unit in units.items():
        unit.gate.register_forward_hook(watch(name))
    network(images())
    assert 0 < min(shares.values()) < max(shares.values()) < 1
    rows = {row.name: row for row in count_ops(ReActNet18(**SIZES), (1, 16, 16)).rows}
    for name, unit in units.items():
        every, active = unit.ops
        counted = rows[f"{name}.convolution"].ops
        predictor = unit.gate.predictor.weight.numel()
        assert every == counted
        assert active == pytest.approx(shares[name] * counted + predictor)
