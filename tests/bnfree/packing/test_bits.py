"""Bits and ternary digits against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bnfree.errors import InputError
from bnfree.packing.bits import TernaryWeight, pack_bits, pack_digits, unpack_bits, unpack_digits

ternary = st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=70)


@given(st.lists(st.booleans(), min_size=1, max_size=70))
@settings(deadline=None, max_examples=50)
def test_bits_are_numpys_from_the_lowest_up(bits):
    packed = pack_bits(torch.tensor(bits))
    assert packed.dtype == torch.uint8
    assert packed.tolist() == np.packbits(bits, bitorder="little").tolist()
    assert unpack_bits(packed, len(bits)).tolist() == bits


@given(ternary)
@settings(deadline=None, max_examples=50)
def test_digits_are_numbers_to_base_three(values):
    packed = pack_digits(torch.tensor(values, dtype=torch.int8))
    assert len(packed) == -(-len(values) // 5)
    for index, byte in enumerate(packed.tolist()):
        five = values[5 * index : 5 * index + 5]
        assert byte == sum((value + 1) * 3**place for place, value in enumerate(five))
    assert unpack_digits(packed, len(values)).tolist() == values


def test_a_byte_above_242_is_no_five_digits():
    with pytest.raises(InputError, match="242"):
        unpack_digits(torch.tensor([0, 243], dtype=torch.uint8), 10)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 5, 3, 3), (8, 8, 1, 1)])
@pytest.mark.parametrize("density", [1.0, 0.5, 0.0])
def test_a_weight_comes_back(shape, density):
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    values = (signs * (torch.rand(shape, generator=generator) < density)).to(torch.int8)
    weight = TernaryWeight.from_values(values, torch.ones(shape[0]))
    assert torch.equal(weight.values(), values)
    assert weight.values().dtype == torch.int8
    bytes_of_a_plane = -(-values.numel() // 8)
    assert len(weight.signs) == bytes_of_a_plane
    assert (weight.survivors is None) == (density == 1)
    assert weight.survivors is None or len(weight.survivors) == bytes_of_a_plane
