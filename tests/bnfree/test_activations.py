"""RPReLU against its definition."""

from __future__ import annotations

import pytest
import torch

from bnfree.activations import RPReLU


def filled(channels: int = 5) -> RPReLU:
    torch.manual_seed(0)
    module = RPReLU(channels).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


def test_a_fresh_one_is_prelu_with_slope_a_quarter():
    x = torch.linspace(-2, 2, 9).view(1, 1, 1, 9)
    expected = torch.where(x > 0, x, 0.25 * x)
    torch.testing.assert_close(RPReLU(1)(x), expected)
    assert {name: p.shape for name, p in RPReLU(3).named_parameters()} == dict.fromkeys(
        ("shift_in", "slope", "shift_out"), torch.Size([3])
    )


def test_values_and_gradients_against_the_formula():
    module = filled()
    x = torch.randn(3, 5, 4, 4, dtype=torch.float64, requires_grad=True)
    incoming = torch.randn(3, 5, 4, 4, dtype=torch.float64)
    y = module(x)
    y.backward(incoming)
    shift_in, slope, shift_out = (p.detach().view(1, 5, 1, 1) for p in module.parameters())
    v = x.detach() + shift_in
    torch.testing.assert_close(y, torch.where(v > 0, v, slope * v) + shift_out)
    derivative = torch.where(v > 0, 1.0, slope)
    torch.testing.assert_close(x.grad, incoming * derivative)
    torch.testing.assert_close(module.shift_in.grad, (incoming * derivative).sum((0, 2, 3)))
    torch.testing.assert_close(module.slope.grad, (incoming * v.clamp(max=0)).sum((0, 2, 3)))
    torch.testing.assert_close(module.shift_out.grad, incoming.sum((0, 2, 3)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_dtype_of_the_input_is_kept(dtype):
    x = torch.randn(2, 3, 4, 4).to(dtype).requires_grad_()
    module = RPReLU(3)
    y = module(x)
    assert y.dtype == dtype
    y.sum().backward()
    assert x.grad.dtype == dtype
    assert module.slope.grad.dtype == torch.float32
