"""The kernel of the first layer on 8-bit images: pixels of 32 output channels, summed as integers, in vector code.

A weight has 24 bits, in three planes of 8. A vector has 16 output channels, of which each adds four products of
unsigned bytes of the images and signed ones of the weights in one instruction, VPDPBUSD.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numba
from llvmlite import binding, ir
from numba.core import cgutils

from bnfree.packing.numba_unit import BLOCK
from bnfree.packing.numba_vectors import FLOATS, INTS, LONG, VECTOR_BYTES, Code, tile_of

ARGUMENTS = (
    "input", "input_pixel", "weights", "steps", "base", "rest", "base_columns", "scales", "output", "output_pixel",
)  # fmt: skip
"""Arguments of a tile, all int64: addresses, and sizes in bytes where they end in `pixel`.

input: the first pixel's window, uint8, its taps one behind the other.
weights: of the block, int8 (3, steps, 32, 4), the highest plane first.
steps: groups of four bytes in a window.
base: what is subtracted from the sums of the upper two planes, int32 (columns, channels), of this row and block.
rest: what is added to the scaled sums, float32, likewise.
base_columns: int64 per pixel: how many bytes behind `base` and `rest` its column begins.
scales: float32 (32,).
output: float32.
"""


def has_instruction() -> bool:
    """Whether the processor that numba compiles for adds products of bytes in vectors of 512 bits."""
    chosen = numba.config.CPU_NAME, numba.config.CPU_FEATURES
    if chosen != (None, None):
        return "+avx512vnni" in (chosen[1] or "").split(",")
    return bool(binding.get_host_cpu_features().get("avx512vnni", False))


def make_pixel_tile(pixels: int) -> Any:
    """The kernel for a number of neighbouring pixels, to be called in compiled code.

    Sums are exact; what is rounded is the result: when planes are joined, and when it is scaled.
    """

    def emit(code: Code) -> None:
        builder, given = code.builder, code.arguments
        # A window is one row of taps.
        given |= {"tap_rows": code.long(1), "input_row": code.long(0)}
        plane_bytes = builder.mul(given["steps"], code.long(4 * BLOCK))
        planes = []
        for _ in range(3):
            planes.append(code.convolve(pixels, INTS, ("weights",), partial(_add_products, code)))
            given["weights"] = builder.add(given["weights"], plane_bytes)
        high, middle, low = planes
        scales, byte = code.vectors(code.at("scales", 0), FLOATS), ir.Constant(INTS, [8] * INTS.count)
        for p in range(pixels):
            column = code.load(code.at("base_columns", code.long(8 * p)), LONG)
            bases, rests = code.vectors(code.at("base", column), INTS), code.vectors(code.at("rest", column), FLOATS)
            output = code.at("output", builder.mul(given["output_pixel"], code.long(p)))
            for v, (scale, base, rest) in enumerate(zip(scales, bases, rests, strict=True)):
                upper = builder.sub(builder.add(builder.shl(high[p][v], byte), middle[p][v]), base)
                upper, lower = (builder.sitofp(part, FLOATS) for part in (upper, low[p][v]))
                total = code.call("fmuladd", FLOATS, upper, code.all(256.0), lower)
                result = code.call("fmuladd", FLOATS, total, scale, rest)
                code.store(result, code.step(output, v * VECTOR_BYTES))

    return tile_of(ARGUMENTS, emit)


def _add_products(code: Code, total: Any, value: Any, weight: Any) -> Any:
    # Declared with 32-bit lanes, as LLVM had it at first: later versions translate it.
    function = cgutils.get_or_insert_function(
        code.builder.module, ir.FunctionType(INTS, [INTS] * 3), "llvm.x86.avx512.vpdpbusd.512"
    )
    return code.builder.call(function, [total, value, weight])
