"""What `packed_inference.py` measures: one packed convolution, first layers, oneDNN's, and the popcount's peak."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from bnfree.packing.bits import TernaryWeight
from bnfree.packing.layers import PackedStem, PackedUnit
from bnfree.packing.numba_layout import RealLayout, UnitLayout
from bnfree.packing.numba_pixel_layout import PixelLayout
from bnfree.packing.numba_pixels import run_pixels
from bnfree.packing.numba_run import run
from bnfree.packing.numba_workspace import Workspace
from bnfree.packing.pixels import Normalization

# Products of signs in a vector of 512 bits, and accumulators enough to hide that each instruction takes a while.
PRODUCTS, ACCUMULATORS = 512, 24


class Unit:
    """A packed 3x3 unit with as many output as input channels, on one image, and the same signs as numbers."""

    def __init__(self, channels: int, size: int) -> None:
        generator = torch.Generator().manual_seed(channels + size)
        self.signs, self.weight = (
            torch.randint(0, 2, shape, generator=generator).float().mul_(2).sub_(1)
            for shape in ((1, channels, size, size), (channels, channels, 3, 3))
        )
        zeros, ones = torch.zeros(channels), torch.ones(channels)
        weight = TernaryWeight.from_values(self.weight.to(torch.int8), ones)
        unit = PackedUnit(zeros, weight, torch.stack([zeros, ones, zeros]), 1, None, 1.0)
        # Followed by another, so that its bits are made too.
        layouts = [UnitLayout(unit, unit), UnitLayout(unit, None)]
        self.workspace = Workspace(None, layouts, 1, size, size)
        x = self.signs.permute(0, 2, 3, 1).contiguous()
        self.residual, self.output = (torch.zeros(1, size, size, channels) for _ in range(2))
        # Makes the bits of the input, and computes both units.
        self._run(2, x.data_ptr(), 0)

    def run(self) -> None:
        """From bits to RPReLU(0 + sums) and its bits."""
        self._run(1, 0, self.residual.data_ptr())

    def _run(self, units: int, source: int, residual: int) -> None:
        space = self.workspace
        run(space.stem, space.units[:units], space.projections, 1, source, residual, self.output.data_ptr())

    def sums(self) -> Tensor:
        """The convolution of the signs, float32 (1, channels, size, size)."""
        self.run()
        return self.output.permute(0, 3, 1, 2)


class Stem:
    """A packed network's first layer on one image, normalised and in 8 bits."""

    def __init__(self, stem: PackedStem, pixels: Tensor, normalization: Normalization) -> None:
        sizes = pixels.shape[2:]
        self.pixels, self.images = pixels, normalization(pixels)
        self.workspace = Workspace(RealLayout.of_stem(stem), [], 1, *sizes)
        self.pixel_workspace = Workspace(PixelLayout(stem, normalization), [], 1, *sizes)

    def run(self) -> None:
        """In float32."""
        space = self.workspace
        run(space.stem, space.units, space.projections, 1, self.images.data_ptr(), 0, 0)

    def run_pixels(self) -> None:
        """In integers."""
        run_pixels(self.pixel_workspace.pixels, 1, self.pixels.data_ptr())


def float32_convolution(signs: Tensor, weight: Tensor) -> Callable[[], Tensor]:
    """The one of oneDNN, its weights prepacked and its activations in the channels-last format."""
    x = signs.contiguous(memory_format=torch.channels_last)
    geometry = ([1, 1], [1, 1], [1, 1], 1)
    packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, list(signs.shape))
    return lambda: torch.ops.mkldnn._convolution_pointwise(x, packed, None, *geometry, "none", [], "")


def int8_convolution(signs: Tensor, weight: Tensor) -> Callable[[], Tensor]:
    """The one of oneDNN with float32 output, its weights prepacked."""
    x = (signs + 1).to(torch.uint8).contiguous(memory_format=torch.channels_last)
    scale, zero = torch.ones(len(weight)), torch.zeros(len(weight), dtype=torch.int32)
    geometry = ([1, 1], [1, 1], [1, 1], 1)
    packed = torch.ops.onednn.qconv_prepack(weight.to(torch.int8), scale, 1.0, 1, *geometry, list(signs.shape))
    return lambda: torch.ops.onednn.qconv2d_pointwise(
        x, 1.0, 1, packed, scale, zero, None, *geometry, 1.0, 0, torch.float32, "none", [], ""
    )


@intrinsic
def _count(typing_context: Any, rounds: Any) -> Any:
    """As many XORs, popcounts and additions of vectors as there are accumulators, in each round; the sum of some."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = ir.VectorType(ir.IntType(32), 16)
        popcount = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector]), "llvm.ctpop.v16i32"
        )
        sums = [cgutils.alloca_once_value(builder, ir.Constant(vector, [i] * 16)) for i in range(ACCUMULATORS)]
        with cgutils.for_range(builder, arguments[0]):
            for place in sums:
                value = builder.load(place)
                # Each popcount needs the last sum, or it would be taken out of the loop.
                word = builder.xor(value, ir.Constant(vector, [0x5A5A5A5A] * 16))
                builder.store(builder.add(value, builder.call(popcount, [word])), place)
        total: Any = ir.Constant(ir.IntType(32), 0)
        for place in sums:
            total = builder.add(total, builder.extract_element(builder.load(place), ir.Constant(ir.IntType(32), 0)))
        return total

    return types.uint32(types.int64), generate


@njit
def _count_often(rounds: int) -> int:
    return _count(rounds)


def popcount_peak() -> float:
    """Products of signs per second of CPU time: XOR, popcount and addition in registers, nothing loaded or stored."""
    rounds, best = 1_000_000, float("inf")
    _count_often(1)
    for _ in range(9):
        start = time.process_time()
        _count_often(rounds)
        best = min(best, time.process_time() - start)
    return rounds * ACCUMULATORS * PRODUCTS / best
