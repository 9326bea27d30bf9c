"""Pre-activations in 16 bits: near, and on the same side of every kink."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.binarize import SignEstimator
from bnfree.lean import kernels
from bnfree.lean.blocks import Planes
from bnfree.lean.elementwise import Entry
from bnfree.lean.storage import to_half
from bnfree.saved_memory import measure_saved_memory


def entry(channels, rprelu=True, beta=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    parameters = [torch.randn(channels, generator=generator) for _ in range(4)]
    parameters[:3] = parameters[:3] if rprelu else [None] * 3
    return Entry(*parameters, None if beta is None else torch.tensor(beta))


def sides(u, parameters):
    """Of both kinks, by the formulas."""
    shift_in, slope, shift_out, shift = (p if p is None else p.view(1, -1, 1, 1) for p in parameters[:4])
    t = x = u
    if shift_in is not None:
        t = u + shift_in
        x = F.prelu(t, slope.flatten()) + shift_out
    v = x + shift if parameters.beta is None else x * parameters.beta + shift
    return torch.stack([t > 0, v >= 0]) if shift_in is not None else v >= 0


@pytest.fixture(params=[False, True], ids=["torch", "numba"])
def numba(request, monkeypatch):
    if request.param:
        pytest.importorskip("numba")
    monkeypatch.setattr(kernels, "enabled", request.param)
    monkeypatch.setattr(kernels, "FEWEST_ELEMENTS", 1)


@pytest.mark.parametrize("rprelu", [True, False])
@pytest.mark.parametrize("beta", [None, 0.7, -1.3])
def test_sides_are_kept_by_going_one_number_further_at_most(rprelu, beta, numba):
    u = torch.randn(8, 16, 40, 41, generator=torch.Generator().manual_seed(1))
    parameters = entry(16, rprelu, beta)
    half = to_half(u, Planes(u), parameters)
    assert half.dtype == torch.float16
    assert torch.equal(sides(half.float(), parameters), sides(u, parameters))
    assert not torch.equal(sides(u.half().float(), parameters), sides(u, parameters))
    # Numpy rounds to nearest: the number that was taken is that one or the next on the other side of u.
    nearest = u.numpy().astype(np.float16)
    away = np.nextafter(nearest, np.where(nearest < u.numpy(), np.inf, -np.inf).astype(np.float16))
    assert ((half.numpy() == nearest) | (half.numpy() == away)).all()
    assert (half.numpy() == nearest).mean() > 0.999


@pytest.mark.parametrize("rprelu", [True, False])
def test_jumps_of_the_derivative_are_kept_too(rprelu, numba):
    u = torch.randn(8, 16, 40, 41, generator=torch.Generator().manual_seed(1))
    parameters = entry(16, rprelu, 0.7)

    def inside(u):
        shift_in, slope, shift_out, shift = (p if p is None else p.view(1, -1, 1, 1) for p in parameters[:4])
        x = u if shift_in is None else F.prelu(u + shift_in, slope.flatten()) + shift_out
        return (x * 0.7 + shift).abs() <= 1

    half = to_half(u, Planes(u), parameters, (-1.0, 1.0)).float()
    assert torch.equal(inside(half), inside(u))
    assert torch.equal(sides(half, parameters), sides(u, parameters))
    assert not torch.equal(inside(to_half(u, Planes(u), parameters).float()), inside(u))


@given(
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40),
    seed=st.integers(0, 3),
)
@settings(deadline=None)
def test_any_number_stays_within_one_step(values, seed):
    u = torch.tensor(values).view(1, 1, 1, -1)
    half = to_half(u, Planes(u), entry(1, seed=seed)).double()
    nearest = u.double().clamp(-65504, 65504)
    assert ((half - nearest).abs() <= nearest.abs() * 2**-10 + 2**-24).all()


@pytest.mark.parametrize("rprelu", [True, False])
def test_compiled_and_torch_code_round_alike(rprelu, monkeypatch):
    pytest.importorskip("numba")
    u = torch.randn(13, 32, 28, 29, generator=torch.Generator().manual_seed(2))
    u *= torch.logspace(-9, 6, 13).view(-1, 1, 1, 1)
    u[0, 0, 0, :3] = torch.tensor([float("nan"), float("inf"), -0.0])
    results = []
    for enabled in (True, False):
        monkeypatch.setattr(kernels, "enabled", enabled)
        results.append(to_half(u, Planes(u), entry(32, rprelu, 0.9)))
    torch.testing.assert_close(*results, rtol=0, atol=0, equal_nan=True)


def gradients(network, x):
    network.zero_grad()
    x = x.clone().requires_grad_()
    y = network(x)
    F.cross_entropy(y, torch.arange(len(x)) % y.shape[1]).backward()
    return {"output": y.detach(), "images": x.grad, **{name: p.grad for name, p in network.named_parameters()}}


OPTIONS = [{}, {"binary_weights": False}, {"norm": "batch_norm"}, {"estimator": "sigmoid"}, {"estimator": "ste"}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", [ReActNet18, ReActNetA])
def test_forward_is_the_same_and_gradients_are_near(kind, options):
    torch.manual_seed(0)
    network, x = kind(width=8, stem="cifar", **options), torch.randn(8, 3, 24, 24)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "shift" in name:
                parameter.normal_(std=0.3)
    exact, network.fast = gradients(network, x), "half_saved"
    kept = gradients(network, x)
    assert torch.equal(kept["output"], exact["output"])
    errors = [((kept[name] - exact[name]).norm() / exact[name].norm()).item() for name in exact]
    # Eleven bits: no side of a kink has changed, which would show as the root of the share of such values.
    assert 0 < max(errors) < 2e-3


def test_what_a_unit_keeps_is_two_bytes_a_value():
    network = ReActNet18(width=8, fast=["half_saved"])
    memory = measure_saved_memory(network, torch.randn(4, 3, 16, 16))
    assert memory.layers["body.0.1"] == 2 * 4 * 8 * 16 * 16 + 5 * 4 * 8
    # Two sets of moments: that of the shortcut, too.
    assert memory.layers["body.1.0"] == 2 * 4 * 8 * 16 * 16 + 2 * 5 * 4 * 16


def test_other_precisions_stay_as_they_are():
    network, x = ReActNet18(width=4).double(), torch.randn(2, 3, 16, 16).double()
    exact, network.fast = gradients(network, x), "half_saved"
    kept = gradients(network, x)
    assert all(torch.equal(kept[name], exact[name]) for name in exact)


def test_an_estimator_that_does_not_declare_its_jumps_is_left_alone(caplog):
    class Box(SignEstimator):
        @staticmethod
        def slope(x):
            return (x.abs() <= 0.5).to(x.dtype)

    network, x = ReActNet18(width=4, estimator=Box), torch.randn(2, 3, 16, 16)
    exact, network.fast = gradients(network, x), "half_saved"
    kept = [gradients(network, x) for _ in range(2)][1]
    assert all(torch.equal(kept[name], exact[name]) for name in exact)
    assert len([record for record in caplog.records if "Box" in record.message and "jumps" in record.message]) == 1
