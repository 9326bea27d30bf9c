"""AdamP and SGDP: on what is scale-invariant, on what is not, and against timm's."""

import copy

import pytest
import torch
from torch import nn

from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError
from bnfree.optimizers.adamp import AdamP
from bnfree.optimizers.sgdp import SGDP

BOTH = [AdamP, SGDP]


def layer_of(standardize=True, seed=0):
    torch.manual_seed(seed)
    return BinaryConv2d(4, 6, 3, padding=1, standardize=standardize, binary_weights=False).double()


def train(layer, optimizer, steps):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(3, 4, 5, 5, generator=generator, dtype=torch.float64)
        target = torch.randn(3, 6, 5, 5, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        (layer(x) - target).square().mean().backward()
        optimizer.step()
    return [p.detach().clone() for p in layer.parameters()]


@pytest.mark.parametrize("kind", BOTH)
def test_steps_of_standardised_weights_are_orthogonal_to_them(kind):
    layer = layer_of()
    optimizer = kind([layer.weight], lr=0.1)
    for _ in range(3):
        before = layer.weight.detach().clone().flatten(1)
        train(layer, optimizer, 1)
        step = layer.weight.detach().flatten(1) - before
        assert step.norm() > 1e-3
        cosines = torch.cosine_similarity(step, before, dim=1)
        assert cosines.abs().max() < 1e-9


@pytest.mark.parametrize("kind", BOTH)
def test_norms_grow_by_the_square_of_the_learning_rate(kind):
    growth = []
    for lr in (1e-2, 5e-3):
        layer = layer_of()
        before = layer.weight.detach().norm()
        train(layer, kind([layer.weight], lr=lr), 1)
        growth.append((layer.weight.detach().norm() - before).item())
    assert growth[0] == pytest.approx(4 * growth[1], rel=0.01)
    assert growth[1] > 0


@pytest.mark.parametrize("steps", [1, 6])
def test_elsewhere_adamp_is_adamw_and_sgdp_is_sgd(steps):
    pairs = [
        (lambda p: AdamP(p, lr=0.01, weight_decay=0.1), lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1)),
        (lambda p: SGDP(p, lr=0.05), lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)),
        (lambda p: SGDP(p, lr=0.05, nesterov=True), lambda p: torch.optim.SGD(p, 0.05, 0.9, nesterov=True)),
    ]
    for ours, theirs in pairs:
        # One row of plain weights that point along their gradient makes the test of the whole tensor fail as well.
        found = []
        for make in (ours, theirs):
            weight = nn.Parameter(torch.ones(3, 4, dtype=torch.float64))
            optimizer = make([weight])
            for step in range(steps):
                weight.grad = weight.detach() + 0.1 * step
                optimizer.step()
            found.append(weight.detach())
        torch.testing.assert_close(*found, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", BOTH)
def test_gains_are_never_projected(kind):
    found = []
    for delta in (0.0, 1e9):
        gain = nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64).view(6, 1, 1, 1))
        optimizer = kind([gain], lr=0.1, delta=delta)
        gain.grad = torch.linspace(1, 2, 6, dtype=torch.float64).view(6, 1, 1, 1)
        optimizer.step()
        found.append(gain.detach())
    assert torch.equal(*found)


def test_weight_decay_of_what_is_projected_is_a_tenth():
    found = {}
    for strength in (0.0, 1.0):
        layer = layer_of()
        found[strength] = train(layer, AdamP([layer.weight], lr=1e-3, weight_decay=strength), 1)[0]
    start = layer_of().weight.detach()
    torch.testing.assert_close(found[0.0] - found[1.0], 1e-4 * start, rtol=1e-9, atol=1e-15)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["AdamP", "SGDP"])
def test_it_is_that_of_timm(name):
    theirs = getattr(pytest.importorskip("timm.optim"), name)
    found = []
    for kind in ({"AdamP": AdamP, "SGDP": SGDP}[name], theirs):
        layer = layer_of()
        options = {"lr": 0.02, "weight_decay": 0.05, **({"momentum": 0.9} if name == "SGDP" else {})}
        found.append(train(layer, kind([layer.weight], **options), 5)[0])
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", BOTH)
def test_a_state_dict_goes_on_where_it_was(kind):
    layer = layer_of()
    optimizer = kind(layer.parameters(), lr=0.02, weight_decay=0.01)
    train(layer, optimizer, 3)
    other = copy.deepcopy(layer)
    resumed = kind(other.parameters(), lr=0.7)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for ours, theirs in zip(train(layer, optimizer, 2), train(other, resumed, 2), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(AdamP, {"betas": (0.9, 1.0)}), (AdamP, {"lr": -1.0}), (SGDP, {"momentum": 1.0}), (SGDP, {"delta": -0.1})],
)
def test_refuses_values_out_of_range(kind, options):
    with pytest.raises(InputError, match=next(iter(options))):
        kind([nn.Parameter(torch.zeros(2))], **options)
