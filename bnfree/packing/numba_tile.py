"""The binary kernel: pixels of 32 output channels, from XOR and popcount to the next unit's bits, in vector code.

A vector has 16 output channels, which share one word of activations. Sums stay in registers, and so does what follows
them. LLVM turns `ctpop` into VPOPCNTD where the processor has it, and into the best that it knows where not.
"""

from __future__ import annotations

from typing import Any

from bnfree.packing.numba_unit import BLOCK
from bnfree.packing.numba_vectors import FLOATS, INTS, LONG, VECTOR_BYTES, Code, tile_of

ARGUMENTS = (
    "input", "input_row", "input_pixel", "weights", "masks", "tap_rows", "steps", "base", "base_columns",
    "residual", "residual_pixel", "constants", "output", "output_pixel", "next_bits", "next_pixel",
)  # fmt: skip
"""Arguments of a tile, all int64: addresses, and sizes in bytes where they end in `row` or `pixel`.

input: the word of the first pixel's first tap, uint32; taps of a row lie one behind the other.
weights: signs of the block from the first row of taps on, uint32 (tap_rows, steps, 32).
masks: survivors, likewise; not read by tiles without masks.
tap_rows, steps: rows of taps inside the image; words in a row of taps.
base: what a sum is before anything differs, float32 (columns, channels), of this row and block.
base_columns: int64 per pixel: how many bytes behind `base` its column begins.
residual: what is added, float32.
constants: float32 (5, 32): scale, shift in front of the PReLU, slope, shift behind it, threshold of the next unit.
output: float32, may be `residual`.
next_bits: uint32, or 0 where no unit follows.
"""


def make_tile(pixels: int, masked: bool) -> Any:
    """The kernel for a number of neighbouring pixels, with or without masks, to be called in compiled code."""

    def emit(code: Code) -> None:
        def count(total: Any, active: Any, sign: Any, survivor: Any = None) -> Any:
            differs = code.builder.xor(active, sign)
            if survivor is not None:
                differs = code.builder.and_(differs, survivor)
            return code.builder.add(total, code.call("ctpop", INTS, differs))

        _finish(code, code.convolve(pixels, INTS, ("weights", "masks") if masked else ("weights",), count))

    return tile_of(ARGUMENTS, emit)


def _finish(code: Code, sums: list[list[Any]]) -> None:
    """From numbers of differences to outputs and bits."""
    builder, given = code.builder, code.arguments
    rows = [code.vectors(code.at("constants", code.long(row * 4 * BLOCK)), FLOATS) for row in range(5)]
    constants = list(zip(*rows, strict=True))
    followed = builder.icmp_signed("!=", given["next_bits"], code.long(0))
    for p, vectors in enumerate(sums):
        column = code.load(code.at("base_columns", code.long(8 * p)), LONG)
        base, residual, output = (
            code.at("base", column),
            code.at("residual", builder.mul(given["residual_pixel"], code.long(p))),
            code.at("output", builder.mul(given["output_pixel"], code.long(p))),
        )
        bases, residuals = code.vectors(base, FLOATS), code.vectors(residual, FLOATS)
        reached = []
        for v, (scale, shift_in, slope, shift_out, threshold) in enumerate(constants):
            # Whole numbers below 2^24: nothing is rounded, nor would it be in one instruction.
            signs = builder.fsub(bases[v], builder.fmul(builder.sitofp(vectors[v], FLOATS), code.all(2.0)))
            trunk = builder.fadd(builder.fadd(builder.fmul(signs, scale), residuals[v]), shift_in)
            positive = builder.fcmp_ordered(">", trunk, code.all(0.0))
            trunk = builder.fadd(builder.select(positive, trunk, builder.fmul(trunk, slope)), shift_out)
            code.store(trunk, code.step(output, v * VECTOR_BYTES))
            reached.append(builder.fcmp_ordered(">=", trunk, threshold))
        word = code.word(reached)
        with builder.if_then(followed, likely=True):
            code.store(word, code.at("next_bits", builder.mul(given["next_pixel"], code.long(p))))
