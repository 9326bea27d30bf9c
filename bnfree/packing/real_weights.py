"""Weights of the layers that stay real, in float32, half precision or 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bnfree.errors import InputError

RealPrecision = Literal["float32", "float16", "int8"]
PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}


@dataclass(frozen=True)
class RealWeight:
    """A weight as `values * scale`, one scale per output channel."""

    values: Tensor
    """float32, float16 or int8, output channels first."""
    scale: Tensor
    """float32 (O,)."""

    @classmethod
    def round(cls, weight: Tensor, precision: RealPrecision) -> RealWeight:
        """Rounds a weight to the nearest that can be stored.

        `float32` keeps it and has scale 1. `float16` has the power of two above the largest magnitude of an output
        channel as its scale, so that nothing overflows and what is rounded is the mantissa, to 11 bits. `int8` divides
        by the largest magnitude / 127.

        Args:
            weight: floating point, output channels first.
            precision: `float32`, `float16` or `int8`.

        Raises:
            InputError: unknown precision.
        """
        if precision not in PRECISIONS:
            raise InputError(f"precision={precision!r} is not known; choose one of {', '.join(PRECISIONS)}.")
        wide = weight.double()
        largest = wide.flatten(1).abs().amax(1)
        if precision == "float32":
            scale = torch.ones_like(largest)
        elif precision == "float16":
            scale = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent)
        else:
            scale = torch.where(largest > 0, largest / 127, 1.0)
        scale = scale.float()
        values = wide / _per_channel(scale.double(), wide)
        if precision == "int8":
            values = values.round().clamp(-127, 127)
        return cls(values.to(PRECISIONS[precision]), scale)

    def expand(self) -> Tensor:
        """The weight in float32."""
        return self.values.float() * _per_channel(self.scale, self.values)


def _per_channel(scale: Tensor, values: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (values.dim() - 1))
