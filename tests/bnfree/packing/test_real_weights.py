"""Rounding of real weights: dtypes, error bounds, extreme ranges."""

from __future__ import annotations

import pytest
import torch

from bnfree.errors import InputError
from bnfree.packing.real_weights import RealWeight


def weight(scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(0))


def test_float32_is_kept():
    assert torch.equal(RealWeight.round(weight(), "float32").expand(), weight())


def test_half_precision_is_that_of_the_number_itself():
    rounded = RealWeight.round(weight(), "float16")
    assert rounded.values.dtype == torch.float16
    # Subnormal numbers of half precision would be rounded more coarsely without the scale.
    normal = weight().abs() > 1e-3
    assert torch.equal(rounded.expand()[normal], weight().half().float()[normal])


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e6, 1e30])
def test_half_precision_never_overflows_nor_vanishes(scale):
    exact = weight(scale)
    expanded = RealWeight.round(exact, "float16").expand()
    largest = exact.abs().flatten(1).amax(1).view(-1, 1, 1, 1)
    assert ((expanded - exact).abs() <= 2**-11 * torch.maximum(exact.abs(), 2**-13 * largest)).all()


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_eight_bits_are_within_half_a_step(scale):
    exact = weight(scale)
    rounded = RealWeight.round(exact, "int8")
    assert rounded.values.dtype == torch.int8
    step = exact.abs().flatten(1).amax(1) / 127
    assert rounded.values.abs().flatten(1).amax(1).eq(127).all()
    assert ((rounded.expand() - exact).abs() <= 0.5001 * step.view(-1, 1, 1, 1)).all()


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_zeros_stay_zeros(precision):
    matrix = torch.randn(4, 5)
    matrix[1] = 0
    matrix[2, ::2] = 0
    rounded = RealWeight.round(matrix, precision)
    assert torch.isfinite(rounded.scale).all()
    assert torch.equal(rounded.expand() == 0, matrix == 0)


def test_an_unknown_precision_is_refused():
    with pytest.raises(InputError, match="precision='int4'"):
        RealWeight.round(weight(), "int4")
