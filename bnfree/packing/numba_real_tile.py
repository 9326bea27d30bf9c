"""The kernel of real layers: pixels of 32 output channels of a float32 convolution, in vector code."""

from __future__ import annotations

from typing import Any

from bnfree.packing.numba_unit import BLOCK
from bnfree.packing.numba_vectors import FLOATS, VECTOR_BYTES, Code, tile_of

ARGUMENTS = (
    "input", "input_row", "input_pixel", "weights", "tap_rows", "steps", "constants", "output", "output_pixel",
)  # fmt: skip
"""Arguments of a tile, all int64: addresses, and sizes in bytes where they end in `row` or `pixel`.

input: the first pixel's first tap, float32; taps of a row lie one behind the other.
weights: of the block from the first row of taps on, float32 (tap_rows, steps, 32).
tap_rows, steps: rows of taps inside the image; values in a row of taps.
constants: float32 (2, 32): factor of the sums, what is added then.
output: float32.
"""


def make_real_tile(pixels: int) -> Any:
    """The kernel for a number of neighbouring pixels, to be called in compiled code.

    Products are added tap by tap, channel by channel, in one instruction where the processor has it.
    """

    def emit(code: Code) -> None:
        builder, given = code.builder, code.arguments

        def add(total: Any, value: Any, weight: Any) -> Any:
            return code.call("fmuladd", FLOATS, value, weight, total)

        sums = code.convolve(pixels, FLOATS, ("weights",), add)
        factors, shifts = (code.vectors(code.at("constants", row * 4 * BLOCK), FLOATS) for row in range(2))
        for p, vectors in enumerate(sums):
            output = code.at("output", builder.mul(given["output_pixel"], code.long(p)))
            for v, (total, factor, shift) in enumerate(zip(vectors, factors, shifts, strict=True)):
                result = builder.fadd(builder.fmul(total, factor), shift)
                code.store(result, code.step(output, v * VECTOR_BYTES))

    return tile_of(ARGUMENTS, emit)
