"""Every estimator beyond the three of `bnfree.binarize`: its formula, its area, its schedule."""

import math
from itertools import pairwise

import pytest
import torch

from bnfree.binarize import RSign, get_estimator, sign
from bnfree.plugins import names

STATIC = ["wide_ste", "swish_sign"]
SCHEDULED = ["exponential", "reste", "ede"]
EQUAL = [f"{name}_equal_area" for name in ("wide_ste", *SCHEDULED)]
GRID = torch.linspace(-2.5, 2.5, 501, dtype=torch.float64)


def expected(name, x, progress):
    """The published formulas, one number at a time."""
    size = abs(x)
    if name == "wide_ste":
        return 1.0 if size <= 1.5 else 0.0
    if name == "swish_sign":
        return 5 * (2 - 5 * x * math.tanh(5 * x / 2)) / (1 + math.cosh(5 * x))
    if name == "exponential":
        o = 1 + 2 * progress
        return o * math.exp(-o * size) / (1 - math.exp(-o)) if size <= 1.5 else 0.0
    if name == "ede":
        t = 10 ** (-1 + 2 * progress)
        return max(1 / t, 1) * t * (1 - math.tanh(t * x) ** 2)
    o = 1 + (1 - math.cos(math.pi / 2 * progress)) * 2
    if size > 1.5:
        return 0.0
    return size ** (1 / o - 1) / o if size > 0.1 else 0.1 ** (1 / o) / 0.1


@pytest.mark.parametrize("name", STATIC + SCHEDULED)
@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_derivatives_are_those_of_the_formula(name, progress):
    x = GRID.clone().requires_grad_()
    incoming = torch.linspace(-3, 3, len(x), dtype=x.dtype)
    y = sign(x, name, torch.tensor(progress, dtype=torch.float64))
    assert y.tolist() == [1.0 if value >= 0 else -1.0 for value in x.tolist()]
    y.backward(incoming)
    slopes = torch.tensor([expected(name, value, progress) for value in x.tolist()], dtype=x.dtype)
    torch.testing.assert_close(x.grad, slopes * incoming, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("x", "factor"), [(0.05, 4.642), (0.11, 1.452), (0.5, 0.529), (1, 0.333), (1.5, 0.254), (1.6, 0)]
)
def test_the_published_factors_of_reste(x, factor):
    assert get_estimator("reste").slope(torch.tensor(x), 1.0).item() == pytest.approx(factor, abs=5e-4)


@pytest.mark.parametrize("name", names("sign_estimator"))
@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_the_area_is_as_stated(name, progress):
    estimator = get_estimator(name)
    wide = torch.linspace(-80, 80, 160_001, dtype=torch.float64)
    slope = estimator.derivative(progress).slope
    area = slope(wide).sum().item() * (wide[1] - wide[0]).item()
    stated = estimator.area(progress) if hasattr(estimator, "area") else 2.0
    assert area == pytest.approx(float(stated), rel=2e-3)


@pytest.mark.parametrize("name", SCHEDULED)
def test_schedules_are_monotone(name):
    """At 0 the slope grows with the progress, and the window narrows: what is within 1.5 comes closer to the sign."""
    estimator = get_estimator(name)
    shape = [estimator.derivative(p / 20).slope(torch.tensor([1e-9, 1.4], dtype=torch.float64)) for p in range(21)]
    at_zero, ratio = ([s[0].item() for s in shape], [(s[1] / s[0]).item() for s in shape])
    assert all(after >= before - 1e-12 for before, after in pairwise(at_zero))
    assert all(after < before for before, after in pairwise(ratio))


def test_reste_begins_as_the_wide_straight_through_estimator():
    torch.testing.assert_close(get_estimator("reste").slope(GRID, 0.0), get_estimator("wide_ste").slope(GRID))


@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
def test_reste_is_the_derivative_of_its_surrogate(progress):
    estimator = get_estimator("reste")
    x = GRID[(GRID.abs() - 0.1).abs() > 1e-3].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(estimator.surrogate(x, progress).sum(), x)
    inside = (x.abs() <= 1.5) & (x != 0)
    torch.testing.assert_close(gradient[inside], estimator.slope(x.detach(), progress)[inside])


@pytest.mark.parametrize("name", STATIC + SCHEDULED + EQUAL)
def test_declared_jumps_are_all_there_are(name):
    """`half_saved` carries no value across them, and relies on there being no others."""
    estimator = get_estimator(name)
    slope = estimator.derivative(0.7).slope
    x = torch.linspace(-2, 2, 40_001, dtype=torch.float64)
    y = slope(x)
    steps = (y[1:] - y[:-1]).abs()
    found = {round(edge, 3) for edge in ((x[1:] + x[:-1]) / 2)[steps > 0.05].tolist()}
    assert all(any(abs(edge - jump) < 2e-3 for jump in estimator.jumps) for edge in found)
    assert all(any(abs(edge - jump) < 2e-3 for edge in found) for jump in estimator.jumps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", STATIC + SCHEDULED)
def test_half_precision_stays_finite(name, dtype):
    x = torch.tensor([-1e4, -3.0, 0.0, 0.05, 3.0, 1e4], dtype=dtype, requires_grad=True)
    sign(x, name, torch.tensor(1.0)).sum().backward()
    assert x.grad.dtype == dtype
    assert x.grad.isfinite().all()


def test_swish_sign_is_as_small_far_away_in_half_precision():
    x = torch.cat([torch.linspace(0, 4, 65), torch.tensor([10.0, 100.0, 3e4])]).half()
    slopes = torch.tensor([expected("swish_sign", min(value, 100.0), 0.0) for value in x.tolist()])
    torch.testing.assert_close(get_estimator("swish_sign").slope(x).float(), slopes, rtol=5e-3, atol=1e-4)


@pytest.mark.parametrize("lean", [True, False])
def test_a_sign_has_the_slope_of_its_progress(lean):
    rsign = RSign(2, "ede").double()
    rsign.lean = lean
    assert "estimator_progress" not in rsign.state_dict()
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    for progress in (0.0, 0.5, 1.0):
        rsign.estimator_progress.fill_(progress)
        (gradient,) = torch.autograd.grad(rsign(x).sum(), x)
        slopes = [expected("ede", value, progress) for value in x.flatten().tolist()]
        torch.testing.assert_close(gradient.flatten(), torch.tensor(slopes, dtype=torch.float64), rtol=1e-7, atol=1e-12)


@pytest.mark.slow
def test_torch_compile_follows_a_schedule_without_compiling_again():
    torch._dynamo.reset()
    rsign = RSign(3, "reste")
    x = torch.randn(2, 3, 4, 4)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(rsign, fullgraph=True, backend=backend)
    for progress in (0.0, 0.5, 1.0):
        rsign.estimator_progress.fill_(progress)
        gradients = []
        for module in (rsign, compiled):
            leaf = x.clone().requires_grad_()
            (module(leaf) * x).sum().backward()
            gradients.append(leaf.grad)
        torch.testing.assert_close(*gradients)
    assert len(graphs) == 1
