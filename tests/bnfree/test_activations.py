"""RPReLU against its definition."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bnfree.activations import RPReLU, build_rprelu
from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.backbones.residual import ResidualUnit
from bnfree.errors import InputError
from bnfree.packing import pack
from bnfree.packing.trainable import trainable_state_dict


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


@given(
    exponents=st.lists(st.floats(-12, 3), min_size=1, max_size=5),
    seed=st.integers(0, 2**32 - 1),
    lean=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_slopes_that_are_powers_of_two(exponents, seed, lean):
    module = build_rprelu(len(exponents), "power_of_two").double()
    assert torch.equal(module.exponent, torch.full((len(exponents),), -3.0, dtype=torch.float64))
    module.lean = lean
    with torch.no_grad():
        module.exponent.copy_(torch.tensor(exponents))
    assert torch.equal(module.slope, torch.tensor([2.0 ** round(e) for e in exponents], dtype=torch.float64))
    plain = RPReLU(len(exponents)).double()
    with torch.no_grad():
        plain.slope.copy_(module.slope)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, len(exponents), 3, 3, dtype=torch.float64, generator=generator)
    found, expected = module(x), plain(x)
    assert torch.equal(found, expected)
    for y in (found, expected):
        y.square().sum().backward()
    # Straight through the rounding, and by the chain rule from the slope.
    torch.testing.assert_close(module.exponent.grad, plain.slope.grad * module.slope.detach() * math.log(2))


@pytest.mark.parametrize("backbone", [ReActNet18, ReActNetA])
def test_a_network_without_multiplications_trains_and_packs(backbone):
    network = backbone(num_classes=3, width=4, stem="cifar", slopes="power_of_two")
    x = torch.randn(4, 3, 16, 16)
    before = {name: p.detach().clone() for name, p in network.named_parameters() if "exponent" in name}
    assert len(before) == len([unit for unit in network.modules() if isinstance(unit, ResidualUnit)])
    network(x).square().sum().backward()
    plain = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    network.lean = False
    network(x).square().sum().backward()
    for lean, p in zip(plain, network.parameters(), strict=True):
        assert torch.allclose(lean, p.grad, rtol=1e-3, atol=1e-4 * p.grad.abs().max().item())
    torch.optim.Adam(network.parameters(), lr=0.1).step()
    assert all(not torch.equal(before[name], dict(network.named_parameters())[name]) for name in before)
    packed = pack(network, "float32", engine="torch")
    assert torch.allclose(packed(x), network(x), atol=1e-3)
    again = backbone(num_classes=3, width=4, stem="cifar", slopes="power_of_two")
    again.load_state_dict(trainable_state_dict(packed.layers, again))
    assert torch.allclose(again(x), network(x), atol=1e-3)


def test_other_slopes_are_refused():
    with pytest.raises(InputError, match="slopes='cubic' is not known; choose 'learned' or 'power_of_two'"):
        ReActNet18(width=2, slopes="cubic")
    layers = pack(ReActNet18(width=2), engine="torch").layers
    with torch.no_grad():
        layers.units[0].rprelu[1] = 0.3
    with pytest.raises(InputError, match="slopes at .* that are no powers of two; give slopes='learned'"):
        trainable_state_dict(layers, ReActNet18(width=2, slopes="power_of_two"))
