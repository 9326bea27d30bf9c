"""Fast modes: other ways to compute the convolutions of the chain, opt-in by name, each with its exactness.

`int8_forward`: binary convolutions of signs run in 8-bit integers on a CPU, through oneDNN. Sums of -1, 0 and +1 are
the same numbers, bit for bit, so output and gradients are those of the exact path. Used for float32 networks outside
autocast and `torch.compile`, elsewhere it changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from bnfree.errors import InputError
from bnfree.lean.elementwise import UnitRule
from bnfree.lean.geometry import Geometry

FAST_MODES = ("int8_forward",)

FEWEST_POSITIONS = 512


def check_fast_modes(names: Iterable[str]) -> tuple[str, ...]:
    """The names, once each.

    Raises:
        InputError: a name that is not known, or a mode that this PyTorch does not offer or computes wrongly.
    """
    names = (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))
    for name in names:
        if name not in FAST_MODES:
            raise InputError(f"fast={name!r} is not known; choose among {', '.join(map(repr, FAST_MODES))}.")
    if "int8_forward" in names and not int8_works():
        raise InputError("fast='int8_forward' does not work here: this PyTorch has no 8-bit convolution by oneDNN.")
    return names


def runs_int8(rule: UnitRule, dtype: torch.dtype, u: Tensor) -> bool:
    """Whether a unit's forward convolution of an input like `u` runs in 8 bits.

    With few positions to compute it does not: the weights are brought into the format of oneDNN in every call.
    """
    return (
        "int8_forward" in rule.fast
        and rule.weight.binary
        and rule.geometry.groups == 1
        and dtype == torch.float32
        and u.device.type == "cpu"
        and u.numel() // u.shape[1] >= FEWEST_POSITIONS * rule.geometry.stride**2
        and not torch.compiler.is_compiling()
    )


def convolve_int8(codes: Tensor, values: Tensor, geometry: Geometry) -> Tensor:
    """Convolution of signs with -1, 0, +1.

    Args:
        codes: uint8 (N, I, H, W), 0 for -1 and 2 for +1; padding counts as 0, not as -1.
        values: (O, I, kH, kW), -1, 0 or +1.
        geometry: of one group.

    Returns:
        float32 (N, O, H', W').
    """
    sizes = [geometry.stride] * 2, [geometry.padding] * 2, [1, 1]
    ones = torch.ones(len(values))
    # The zero point 1 makes -1, 0 and +1 of 0, 1 and 2.
    packed = torch.ops.onednn.qconv_prepack(values.to(torch.int8), ones, 1.0, 1, *sizes, 1, list(codes.shape))
    zeros = torch.zeros(len(values), dtype=torch.int32)
    output = torch.ops.onednn.qconv2d_pointwise(
        codes, 1.0, 1, packed, ones, zeros, None, *sizes, 1, 1.0, 0, torch.float32, "none", [], ""
    )
    return output.contiguous() if codes.is_contiguous() else output


@cache
def int8_works() -> bool:
    """Whether 8-bit convolutions exist and agree with those in float32: they are no documented part of PyTorch."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 2, (2, 16, 9, 7), generator=generator).mul_(2).to(torch.uint8)
    values = torch.randint(-1, 2, (8, 16, 3, 3), generator=generator).float()
    try:
        for stride in (1, 2):
            expected = F.conv2d(codes.float() - 1, values, None, stride, 1)
            if not torch.equal(convolve_int8(codes, values, Geometry(stride, 1, 1)), expected):
                return False
    except (AttributeError, RuntimeError, TypeError):
        return False
    return True
