"""Sign, its gradient estimators, and RSign."""

from __future__ import annotations

import math

import pytest
import torch

from bnfree.binarize import RSign, SignEstimator, sign
from bnfree.errors import InputError

# Both ends of the windows, the kink at 0 and its neighbours in float32, and a grid between.
POINTS = torch.cat(
    [
        torch.tensor([-1.0, 1.0, 0.0, -0.0, 2.0, -2.0, 1e30, -1e30, 1e-45, -1e-45]),
        torch.tensor([-1.0, 1.0]).nextafter(torch.tensor(0.0)),
        torch.tensor([-1.0, 1.0]).nextafter(torch.tensor([-2.0, 2.0])),
        torch.linspace(-2.5, 2.5, 1001),
    ]
)
SLOPES = {
    "approx": lambda x: 2 - 2 * abs(x) if abs(x) <= 1 else 0.0,
    "ste": lambda x: 1.0 if abs(x) <= 1 else 0.0,
    "sigmoid": lambda x: 1.5 * (1 - math.tanh(1.5 * x) ** 2),
}


@pytest.mark.parametrize("estimator", SLOPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_values_are_exactly_one_and_minus_one(estimator, dtype):
    x = POINTS.to(dtype)
    y = sign(x, estimator)
    assert y.dtype == dtype
    assert y.shape == x.shape
    expected = [1.0 if value >= 0 else -1.0 for value in x.tolist()]
    assert y.tolist() == expected


def test_zero_is_positive_whatever_its_sign():
    assert sign(torch.tensor([0.0, -0.0])).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("estimator", SLOPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slopes_against_the_formula(estimator, dtype):
    x = POINTS.to(dtype, copy=True).requires_grad_()
    incoming = torch.linspace(-3, 3, len(x), dtype=dtype)
    sign(x, estimator).backward(incoming)
    expected = [SLOPES[estimator](value) for value in x.tolist()]
    slopes = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(x.grad.double(), slopes * incoming.double(), rtol=1e-6, atol=1e-6)
    assert ((slopes == 0) <= (x.grad == 0)).all()


@pytest.mark.parametrize("estimator", ["approx", "ste"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_keep_half_precision(estimator, dtype):
    x = torch.linspace(-2, 2, 33, dtype=dtype, requires_grad=True)
    sign(x, estimator).sum().backward()
    assert x.grad.dtype == dtype
    # Multiples of 1/8: every slope is exact in either format.
    assert x.grad.tolist() == [SLOPES[estimator](value) for value in x.tolist()]


def test_the_input_is_left_alone():
    x = torch.linspace(-2, 2, 33, requires_grad=True)
    before = x.detach().clone()
    y = sign(x)
    kept = y.detach().clone()
    y.sum().backward()
    assert torch.equal(x, before)
    assert torch.equal(y, kept)


def test_an_estimator_of_ones_own_is_a_few_lines():
    class Tent(SignEstimator):
        name = "tent for this test"

        @staticmethod
        def slope(x):
            return (1 - x.abs()).clamp(min=0)

    for estimator in ("tent for this test", Tent):
        x = torch.tensor([-2.0, -0.5, 0.0, 0.25], requires_grad=True)
        y = sign(x, estimator)
        y.sum().backward()
        assert y.tolist() == [-1, -1, 1, 1]
        assert x.grad.tolist() == [0, 0.5, 1, 0.75]
        assert RSign(3, estimator).estimator == estimator


@pytest.mark.parametrize("make", [lambda: sign(torch.zeros(1), "nope"), lambda: RSign(3, "nope")])
def test_an_unknown_estimator_is_named_with_the_choices(make):
    with pytest.raises(InputError, match=r"estimator='nope'.*approx.*ste"):
        make()


def test_a_slope_that_takes_something_else_is_refused():
    class Method(SignEstimator):
        name = "a method for this test"

        def slope(self, x):
            return x

    class Scheduled(SignEstimator):
        name, scheduled = "without progress for this test", True

        @staticmethod
        def slope(x):
            return x

    with pytest.raises(InputError, match=r"^the slope of estimator='a method .* as slope\(x\), as a static method is"):
        RSign(3, "a method for this test")
    with pytest.raises(InputError, match=r"estimator='without .* as slope\(x, progress\)"):
        RSign(3, "without progress for this test")


def test_rsign_shifts_each_channel():
    rsign = RSign(3)
    assert rsign.shift.tolist() == [0, 0, 0]
    with torch.no_grad():
        rsign.shift.copy_(torch.tensor([0.5, 0.0, -0.5]))
    x = torch.tensor([-0.5, -0.25, 0.0, 0.25, 0.5]).view(1, 1, 1, 5).expand(2, 3, 1, 5)
    expected = torch.tensor([[1, 1, 1, 1, 1], [-1, -1, 1, 1, 1], [-1, -1, -1, -1, 1]]).view(1, 3, 1, 5)
    assert torch.equal(rsign(x), expected.expand(2, 3, 1, 5).float())
    scaled = rsign(x, torch.tensor(4.0))
    assert scaled[0, 2, 0].tolist() == [-1, -1, -1, 1, 1]


def test_gradients_of_rsign_against_the_formula():
    torch.manual_seed(0)
    rsign = RSign(4).double()
    with torch.no_grad():
        rsign.shift.normal_()
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    scale, incoming = torch.tensor(1.7, dtype=torch.float64), torch.randn(3, 4, 5, 5, dtype=torch.float64)
    rsign(x, scale).backward(incoming)
    v = x.detach() * scale + rsign.shift.detach().view(1, 4, 1, 1)
    through = incoming * (2 - 2 * v.abs()).clamp(min=0)
    torch.testing.assert_close(x.grad, through * scale)
    torch.testing.assert_close(rsign.shift.grad, through.sum((0, 2, 3)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_threshold_is_computed_in_float32(dtype):
    rsign = RSign(1)
    with torch.no_grad():
        # 100 - 100.001 rounds to 0 in half precision, so that the sum there would have sign +1.
        rsign.shift.fill_(-100.001)
    x = torch.full((1, 1, 1, 1), 100.0, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = rsign(x)
    assert y.dtype == dtype
    assert y.item() == -1
    assert rsign(x, torch.tensor(1.00002)).item() == 1
    y.sum().backward()
    assert x.grad.dtype == dtype
    assert rsign.shift.grad.dtype == torch.float32


@pytest.mark.parametrize("estimator", SLOPES)
def test_torch_compile_in_one_graph(estimator):
    torch._dynamo.reset()
    torch.manual_seed(0)
    rsign = RSign(3, estimator)
    x = torch.randn(2, 3, 4, 4)
    compiled = torch.compile(rsign, fullgraph=True, backend="aot_eager")
    gradients = []
    for module in (rsign, compiled):
        leaf = x.clone().requires_grad_()
        rsign.shift.grad = None
        y = module(leaf, torch.tensor(1.5))
        (y * x).sum().backward()
        gradients.append((y.detach(), leaf.grad, rsign.shift.grad.clone()))
    for eager, traced in zip(*gradients, strict=True):
        torch.testing.assert_close(eager, traced)


def test_torch_export():
    rsign = RSign(3).eval()
    x = torch.randn(2, 3, 4, 4)
    exported = torch.export.export(rsign, (x,)).module()
    assert torch.equal(exported(x), rsign(x))
