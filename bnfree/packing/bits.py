"""Binary and ternary weights as bits, in memory and on disk.

Bits lie in bytes from the lowest bit up; weights in the order of a contiguous (O, I, kH, kW) tensor. The bits that fill
up the last byte are 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bnfree.errors import InputError

# 3^5 = 243 values fit into the 256 of a byte: 1.6 bits a weight.
DIGITS_PER_BYTE = 5


@dataclass(frozen=True)
class TernaryWeight:
    """The weight of a binary convolution: one sign a weight, one scale a filter, and which weights survive."""

    shape: tuple[int, int, int, int]
    """(O, I, kH, kW)."""
    signs: Tensor
    """uint8 (ceil(n / 8),): bit 1 for +1, bit 0 for -1 and for pruned weights."""
    survivors: Tensor | None
    """uint8 (ceil(n / 8),): bit 1 where a weight survives; None when all do."""
    scale: Tensor
    """float32 (O,): what a sum of signs is multiplied by."""

    @classmethod
    def from_values(cls, values: Tensor, scale: Tensor) -> TernaryWeight:
        """Packs values -1, 0 and +1 of shape (O, I, kH, kW), any dtype; `scale` (O,)."""
        out_channels, in_channels, height, width = values.shape
        flat = values.flatten()
        survivors = None if bool((flat != 0).all()) else pack_bits(flat != 0)
        return cls((out_channels, in_channels, height, width), pack_bits(flat > 0), survivors, scale)

    def values(self) -> Tensor:
        """-1, 0 where pruned, and +1: int8 (O, I, kH, kW)."""
        count = math.prod(self.shape)
        values = unpack_bits(self.signs, count).to(torch.int8).mul_(2).sub_(1)
        if self.survivors is not None:
            values *= unpack_bits(self.survivors, count)
        return values.view(self.shape)

    def without_silent_filters(self) -> TernaryWeight:
        """The K filters whose scale is not 0, as a weight (K, I, kH, kW)."""
        sounding = self.scale != 0
        of_sounding = sounding.repeat_interleave(math.prod(self.shape[1:]))

        def rest(plane: Tensor) -> Tensor:
            return pack_bits(unpack_bits(plane, math.prod(self.shape))[of_sounding])

        survivors = None if self.survivors is None else rest(self.survivors)
        shape = int(sounding.sum()), *self.shape[1:]
        return TernaryWeight(shape, rest(self.signs), survivors, self.scale[sounding])

    def with_silent_filters(self, sounding: Tensor) -> TernaryWeight:
        """The opposite: filters of scale 0, of pruned weights if there are any in the others, else of +1.

        Args:
            sounding: bool (O,), which filters of the result are those of this weight.
        """
        values = self.values().new_full((len(sounding), *self.shape[1:]), int(self.survivors is None))
        values[sounding] = self.values()
        return TernaryWeight.from_values(
            values, self.scale.new_zeros(len(sounding)).masked_scatter(sounding, self.scale)
        )


def pack_bits(bits: Tensor) -> Tensor:
    """Eight bits a byte, the first in the lowest bit: bool (n,) to uint8 (ceil(n / 8),)."""
    padded = torch.nn.functional.pad(bits.to(torch.uint8), (0, -len(bits) % 8)).view(-1, 8)
    return (padded << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, count: int) -> Tensor:
    """The first `count` bits that `pack_bits` has packed: bool (count,)."""
    return (packed[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten()[:count].bool()


def pack_digits(values: Tensor) -> Tensor:
    """Five ternary digits a byte, the first the least significant.

    Args:
        values: -1, 0 and +1, int8 (n,); stored as digits 0, 1 and 2.

    Returns:
        uint8 (ceil(n / 5),), every byte below 243. Digits that fill up the last byte are 0.
    """
    digits = torch.nn.functional.pad((values + 1).to(torch.uint8), (0, -len(values) % DIGITS_PER_BYTE))
    return (digits.view(-1, DIGITS_PER_BYTE) * _powers()).sum(1, dtype=torch.uint8)


def unpack_digits(packed: Tensor, count: int) -> Tensor:
    """The first `count` values that `pack_digits` has packed: int8 (count,) of -1, 0 and +1.

    Raises:
        InputError: a byte that is no five ternary digits.
    """
    if bool((packed >= 3**DIGITS_PER_BYTE).any()):
        raise InputError("a byte of ternary digits is above 242, which no five digits give.")
    return (packed[:, None] // _powers() % 3).flatten()[:count].to(torch.int8) - 1


def _powers() -> Tensor:
    return 3 ** torch.arange(DIGITS_PER_BYTE, dtype=torch.uint8)
