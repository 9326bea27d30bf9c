"""Fast modes: other ways to compute the convolutions of the chain, opt-in by name, each with its exactness.

`int8_forward`: binary convolutions of signs run in 8-bit integers on a CPU, through oneDNN. Sums of -1, 0 and +1 are
the same numbers, bit for bit, so output and gradients are those of the exact path. Used for float32 networks outside
autocast and `torch.compile`, elsewhere it changes nothing.

`bf16_backward`: both gradients of binary convolutions are computed in bfloat16, summed in float32. The signs are exact
in it, and the scale of the weights is put on the incoming gradient, so that what is rounded is that gradient and the
two results, to 8 bits each. Used for float32 networks with binary weights outside autocast, on CPUs that multiply
bfloat16 and on CUDA devices.

`half_saved`: what each unit keeps for the backward pass is its input in float16, half the bytes; the forward pass stays
the same. See `bnfree.lean.storage` for how it is rounded. Used for float32 networks on every device.

`half_forward`: on CUDA devices binary convolutions of signs run in float16, and scales are applied afterwards in
float32. Float16 holds every whole number up to 2048 and every even one up to 4096, so the sums are the same numbers; a
layer whose sums may lie beyond stays in float32. Used for float32 networks outside autocast. Not yet run on a GPU: what
has been checked is the arithmetic, on a CPU. There PyTorch rounds sums in 16 bits earlier, or is slow: take
`int8_forward`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from bnfree.errors import InputError
from bnfree.lean.convolution import convolution_gradients, convolve
from bnfree.lean.elementwise import UnitRule
from bnfree.lean.geometry import Geometry

FAST_MODES = ("int8_forward", "bf16_backward", "half_saved", "half_forward")

FEWEST_POSITIONS = 512
# For each filter. Below, a product of matrices is faster than bringing weights into the format of the convolution.
MOST_POSITIONS = 16
# Float16 holds the whole numbers up to here, and the even ones up to twice as much.
LARGEST_WHOLE = 2048

_packed = WeakTensorKeyDictionary()


def check_fast_modes(names: Iterable[str]) -> tuple[str, ...]:
    """The names, once each.

    Raises:
        InputError: a name that is not known.
    """
    names = (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))
    for name in names:
        if name not in FAST_MODES:
            raise InputError(f"fast={name!r} is not known; choose among {', '.join(map(repr, FAST_MODES))}.")
    return names


def check_available(names: Iterable[str]) -> None:
    """Checks that training can use the modes; evaluation goes without those that it cannot.

    Raises:
        InputError: a mode that this PyTorch does not offer or computes wrongly.
    """
    for name in names:
        if lacking := _lacking(name):
            raise InputError(f"fast={name!r} does not work here: {lacking}; fast=[] goes without.")


def _lacking(name: str) -> str:
    """What a mode needs and is not there."""
    if name == "int8_forward" and not int8_works():
        return "this PyTorch has no 8-bit convolution by oneDNN"
    if name == "bf16_backward" and not (bf16_works() or _gpu_has_bf16()):
        return "it needs a CPU with AVX512-BF16 or AMX, or a GPU with bfloat16"
    if name == "half_forward" and not torch.cuda.is_available():
        return "it needs a GPU, and 'int8_forward' does the same for a CPU"
    return ""


def runs_int8(rule: UnitRule, dtype: torch.dtype, u: Tensor, keep: bool = False) -> bool:
    """Whether a unit's forward convolution of an input like `u` runs in 8 bits.

    With few positions to compute it does not, unless the weights' 8-bit form is kept: to make it takes longer.
    """
    return (
        "int8_forward" in rule.fast
        and rule.weight.binary
        and rule.geometry.groups == 1
        and dtype == torch.float32
        and u.device.type == "cpu"
        and (keep or u.numel() // u.shape[1] >= FEWEST_POSITIONS * rule.geometry.stride**2)
        and not torch.compiler.is_compiling()
        and int8_works()
    )


def runs_bf16(rule: UnitRule, dtype: torch.dtype, u: Tensor) -> bool:
    """Whether the gradients of a unit's convolution, for an input like `u`, are computed in bfloat16."""
    return (
        "bf16_backward" in rule.fast
        and rule.weight.binary
        and dtype == torch.float32
        and (u.device.type == "cuda" or (u.device.type == "cpu" and bf16_works()))
    )


def runs_half(rule: UnitRule, dtype: torch.dtype, u: Tensor) -> bool:
    """Whether a unit's forward convolution of an input like `u` runs in float16; see also `modes_for`."""
    return "half_forward" in rule.fast and rule.weight.binary and dtype == torch.float32 and u.device.type == "cuda"


def modes_for(fast: tuple[str, ...], weight: Tensor, masked: bool) -> tuple[str, ...]:
    """The modes without `half_forward` for weights (O, I, kH, kW) whose sums float16 may not hold.

    Sums of an even number of -1 and +1 are even, and with an even I the number is even at the border too; zeros of a
    mask make odd ones. Without filters there is nothing to be fast with.
    """
    if len(weight) == 0:
        return ()
    largest = LARGEST_WHOLE if masked or weight.shape[1] % 2 else 2 * LARGEST_WHOLE
    return fast if weight.shape[1:].numel() <= largest else tuple(mode for mode in fast if mode != "half_forward")


def convolve_half(s: Tensor, values: Tensor, geometry: Geometry) -> Tensor:
    """Float32 convolution of float16 signs `s` (N, I, H, W) with -1, 0, +1 (O, I / groups, kH, kW)."""
    return convolve(s, values.to(s.dtype), geometry).to(torch.float32)


def convolve_int8(codes: Tensor, values: Tensor, geometry: Geometry, keep: bool = False) -> Tensor:
    """Convolution of signs with -1, 0, +1.

    Args:
        codes: uint8 (N, I, H, W), 0 for -1 and 2 for +1; padding counts as 0, not as -1.
        values: (O, I, kH, kW), -1, 0 or +1.
        geometry: of one group.
        keep: whether `values` will come again, unchanged: what is made of them is kept as long as they are.

    Returns:
        float32 (N, O, H', W').
    """
    positions = codes.numel() // codes.shape[1] // geometry.stride**2
    if not keep and positions <= MOST_POSITIONS * len(values):
        return _multiply_int8(codes, values, geometry)
    sizes = [geometry.stride] * 2, [geometry.padding] * 2, [1, 1]
    ones = torch.ones(len(values))
    packed = _packed.get(values) if keep else None
    if packed is None:
        # The zero point 1 makes -1, 0 and +1 of 0, 1 and 2.
        packed = torch.ops.onednn.qconv_prepack(values.to(torch.int8), ones, 1.0, 1, *sizes, 1, list(codes.shape))
        if keep:
            _packed[values] = packed
    zeros = torch.zeros(len(values), dtype=torch.int32)
    output = torch.ops.onednn.qconv2d_pointwise(
        codes, 1.0, 1, packed, ones, zeros, None, *sizes, 1, 1.0, 0, torch.float32, "none", [], ""
    )
    return output.contiguous() if codes.is_contiguous() else output


def _multiply_int8(codes: Tensor, values: Tensor, geometry: Geometry) -> Tensor:
    """`convolve_int8` as a product of matrices, which takes weights in any format."""
    images, channels, height, width = codes.shape
    filters, _, size, _ = values.shape
    padding, stride = geometry.padding, geometry.stride
    signs = codes.new_zeros((images, height + 2 * padding, width + 2 * padding, channels), dtype=torch.int8)
    inside = signs[:, padding : padding + height, padding : padding + width]
    torch.sub(codes.view(torch.int8).permute(0, 2, 3, 1), 1, out=inside)
    height, width = ((n + 2 * padding - size) // stride + 1 for n in (height, width))
    image, row, column, _ = signs.stride()
    shape, strides = (images, height, width, size, size * channels), (image, row * stride, column * stride, row, 1)
    # A copy where the kernel is as wide as the image: overlapping rows of a view are more than _int_mm understands.
    rows = signs.as_strided(shape, strides).reshape(images * height * width, -1).contiguous()
    columns = values.to(torch.int8).permute(0, 2, 3, 1).reshape(filters, -1).t()
    # Of a single product of each pair, _int_mm gives what happened to be in memory (torch 2.11 to 2.14).
    sums = torch._int_mm(rows, columns) if len(columns) > 1 else rows.int() * columns.int()
    output = sums.view(images, height, width, filters).permute(0, 3, 1, 2)
    return output.to(torch.float32, memory_format=_format_of(codes))


def _format_of(x: Tensor) -> torch.memory_format:
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


def gradients_bf16(
    gradient: Tensor, s: Tensor, signs: Tensor, scale: Tensor, geometry: Geometry, need_s: bool, need_filters: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `s` and of scale * signs, by convolutions in bfloat16.

    Args:
        gradient: float32 (N, O, H', W'), that of the output.
        s: bfloat16 (N, I, H, W), -1 or +1.
        signs: (O, I, kH, kW), -1, 0 or +1.
        scale: float32 (O,), not 0.
        geometry: of the convolution.
        need_s: whether the gradient of `s` is wanted.
        need_filters: whether that of the filters is.

    Returns:
        bfloat16 (N, I, H, W) and float32 (O, I, kH, kW), None where not wanted.
    """
    factors = scale.view(-1, 1, 1, 1)
    incoming = (gradient * factors.view(-1, 1, 1)).to(torch.bfloat16)
    back, filters = convolution_gradients(incoming, s, signs.to(torch.bfloat16), geometry, need_s, need_filters)
    return back, None if filters is None else filters / factors


@cache
def int8_works() -> bool:
    """Whether 8-bit convolutions exist and agree with those in float32: they are no documented part of PyTorch."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 2, (2, 16, 9, 7), generator=generator).mul_(2).to(torch.uint8)
    values = torch.randint(-1, 2, (8, 16, 3, 3), generator=generator).float()
    try:
        for stride in (1, 2):
            expected = F.conv2d(codes.float() - 1, values, None, stride, 1)
            geometry = Geometry(stride, 1, 1)
            for result in (convolve_int8(codes, values, geometry, keep=True), _multiply_int8(codes, values, geometry)):
                if not torch.equal(result, expected):
                    return False
    except (AttributeError, RuntimeError, TypeError):
        return False
    return True


@torch.compiler.assume_constant_result
def bf16_works() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware, and PyTorch adds up the products in float32."""
    return _bf16_works()


@cache
def _bf16_works() -> bool:
    if not any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")):
        return False
    # Sums of 2304 ones would stop at 256 if they were taken in bfloat16.
    ones = torch.ones(1, 256, 8, 8, dtype=torch.bfloat16)
    weight = torch.ones(256, 256, 3, 3, dtype=torch.bfloat16)
    try:
        grad_x, grad_weight = convolution_gradients(ones, ones, weight, Geometry(1, 1, 1), True, True)
    except RuntimeError:
        return False
    assert grad_x is not None
    assert grad_weight is not None
    exact = grad_x[0, 0, 4, 4].item() == 9 * 256 and grad_weight[0, 0, 1, 1].item() == 64
    return exact and all(_writes_all(size, stride) for size in (1, 2, 3) for stride in (1, 2))


def _writes_all(size: int, stride: int) -> bool:
    """Whether gradients in bfloat16 at small images are those of float32, with memory in which NaNs have been."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 2, (2, 16, size, size), generator=generator).mul_(2).sub_(1).float()
    weight = torch.randint(0, 2, (16, 16, 3, 3), generator=generator).mul_(2).sub_(1).float()
    gradient = torch.randint(-3, 4, (2, 16, -(-size // stride), -(-size // stride)), generator=generator).float()
    tensors, geometry = (gradient, x, weight), Geometry(stride, 1, 1)
    expected = convolution_gradients(*tensors, geometry, True, True)
    halves = [tensor.to(torch.bfloat16) for tensor in tensors]
    # As large as the gradients, and freed at once.
    for _ in range(4):
        poison = [torch.full_like(tensor, torch.nan) for tensor in (*halves, *tensors)]
        del poison
    found = convolution_gradients(halves[0], halves[1], halves[2], geometry, True, True)
    # Not equal(): the sums are whole numbers and, rounded to 8 bits, up to one part in 256 away.
    return all(
        bool((a is not None and b is not None) and ((a.float() - b).abs() <= b.abs() / 256).all())
        for a, b in zip(found, expected, strict=True)
    )


def _gpu_has_bf16() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
