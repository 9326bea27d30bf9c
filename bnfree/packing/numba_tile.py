"""The kernel: some pixels of 32 output channels, from XOR and popcount to the next unit's bits, in vector code.

Written in LLVM's own terms, since numba has no vectors: a vector has 16 output channels, which share one word of
activations. Sums stay in registers, and so does what follows them. LLVM turns `ctpop` into VPOPCNTD where the processor
has it, and into the best that it knows where not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from bnfree.packing.numba_unit import BLOCK

_LANES = 16
_VECTORS = BLOCK // _LANES
_BYTE, _INT, _LONG, _FLOAT = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_INTS, _FLOATS = ir.VectorType(_INT, _LANES), ir.VectorType(_FLOAT, _LANES)
_VECTOR_BYTES = 4 * _LANES

ARGUMENTS = (
    "bits", "bits_row", "bits_pixel", "weights", "masks", "tap_rows", "steps", "base", "base_columns",
    "residual", "residual_pixel", "constants", "output", "output_pixel", "next_bits", "next_pixel",
)  # fmt: skip
"""Arguments of a tile, all int64: addresses, and sizes in bytes where they end in `row` or `pixel`.

bits: the word of the first pixel's first tap, uint32; taps of a row lie one behind the other.
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

    @intrinsic
    def tile(typing_context: Any, arguments: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            named = dict(zip(ARGUMENTS, cgutils.unpack_tuple(builder, values[0]), strict=True))
            _Tile(builder, named, pixels, masked).emit()
            return context.get_dummy_value()

        return types.void(types.UniTuple(types.int64, len(ARGUMENTS))), generate

    return tile


@intrinsic
def compare(typing_context: Any, values: Any, thresholds: Any) -> Any:
    """The bits of 32 float32 at an address, compared with the thresholds at another, as uint32."""

    def generate(context: Any, builder: Any, signature: Any, addresses: Any) -> Any:
        code = _Code(builder, dict(zip(("values", "thresholds"), addresses, strict=True)))
        pairs = zip(*(code.vectors(code.at(name, 0), _FLOATS) for name in code.arguments), strict=True)
        return code.word(builder.fcmp_ordered(">=", value, threshold) for value, threshold in pairs)

    return types.uint32(types.int64, types.int64), generate


class _Code:
    """Emits loads, stores and what else vectors need; addresses by their names."""

    def __init__(self, builder: ir.IRBuilder, arguments: dict[str, Any]) -> None:
        self.builder, self.arguments = builder, arguments

    def at(self, name: str, offset: Any) -> Any:
        return self.step(self.builder.inttoptr(self.arguments[name], _BYTE.as_pointer()), offset)

    def step(self, pointer: Any, offset: Any) -> Any:
        return self.builder.gep(pointer, [offset if isinstance(offset, ir.Value) else self.long(offset)])

    def vectors(self, pointer: Any, kind: Any) -> list[Any]:
        return [self.load(self.step(pointer, v * _VECTOR_BYTES), kind) for v in range(_VECTORS)]

    def load(self, pointer: Any, kind: Any) -> Any:
        return self.builder.load(self.builder.bitcast(pointer, kind.as_pointer()), align=4)

    def store(self, value: Any, pointer: Any) -> None:
        self.builder.store(value, self.builder.bitcast(pointer, value.type.as_pointer()), align=4)

    def broadcast(self, word: Any) -> Any:
        first = self.builder.insert_element(ir.Constant(_INTS, ir.Undefined), word, ir.Constant(_INT, 0))
        return self.builder.shuffle_vector(first, first, ir.Constant(_INTS, [0] * _LANES))

    @staticmethod
    def long(value: int) -> Any:
        return ir.Constant(_LONG, value)

    @staticmethod
    def all(value: float) -> Any:
        return ir.Constant(_FLOATS, [value] * _LANES)

    def word(self, bits: Iterable[Any]) -> Any:
        """Vectors of bits as one integer, the first in its lowest bits."""
        word: Any = ir.Constant(_INT, 0)
        for v, vector in enumerate(bits):
            lanes = self.builder.zext(self.builder.bitcast(vector, ir.IntType(_LANES)), _INT)
            word = self.builder.or_(word, self.builder.shl(lanes, ir.Constant(_INT, v * _LANES)))
        return word


class _Tile(_Code):
    """Emits the code of one tile."""

    def __init__(self, builder: ir.IRBuilder, arguments: dict[str, Any], pixels: int, masked: bool) -> None:
        super().__init__(builder, arguments)
        self.pixels, self.masked = pixels, masked

    def emit(self) -> None:
        """The sums, then what follows them."""
        zero = ir.Constant(_INTS, [0] * _LANES)
        sums = [[cgutils.alloca_once_value(self.builder, zero) for _ in range(_VECTORS)] for _ in range(self.pixels)]
        for pixel in sums:
            for vector in pixel:
                self.builder.store(zero, vector)
        self._count_differences(sums)
        self._finish([[self.builder.load(vector) for vector in pixel] for pixel in sums])

    def _count_differences(self, sums: list[list[Any]]) -> None:
        builder, given = self.builder, self.arguments
        popcount = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_INTS, [_INTS]), f"llvm.ctpop.v{_LANES}i32"
        )
        row_bytes = builder.mul(given["steps"], ir.Constant(_LONG, 4 * BLOCK))
        pixels = [self.at("bits", builder.mul(given["bits_pixel"], self.long(p))) for p in range(self.pixels)]
        with cgutils.for_range(builder, given["tap_rows"]) as row:
            rows = [self.step(pixel, builder.mul(row.index, given["bits_row"])) for pixel in pixels]
            skipped = builder.mul(row.index, row_bytes)
            weights, masks = (self.at(name, skipped) for name in ("weights", "masks"))
            with cgutils.for_range(builder, given["steps"]) as step:
                behind = builder.mul(step.index, self.long(4 * BLOCK))
                signs = self.vectors(self.step(weights, behind), _INTS)
                survivors = self.vectors(self.step(masks, behind), _INTS) if self.masked else signs
                for pixel, vectors in zip(rows, sums, strict=True):
                    word = self.load(self.step(pixel, builder.mul(step.index, self.long(4))), _INT)
                    active = self.broadcast(word)
                    for sign, survivor, vector in zip(signs, survivors, vectors, strict=True):
                        differs = builder.xor(active, sign)
                        if self.masked:
                            differs = builder.and_(differs, survivor)
                        count = builder.call(popcount, [differs])
                        builder.store(builder.add(builder.load(vector), count), vector)

    def _finish(self, sums: list[list[Any]]) -> None:
        builder, given = self.builder, self.arguments
        rows = [self.vectors(self.at("constants", self.long(row * 4 * BLOCK)), _FLOATS) for row in range(5)]
        constants = list(zip(*rows, strict=True))
        followed = builder.icmp_signed("!=", given["next_bits"], self.long(0))
        for p, vectors in enumerate(sums):
            column = self.load(self.at("base_columns", self.long(8 * p)), _LONG)
            base, residual, output = (
                self.at("base", column),
                self.at("residual", builder.mul(given["residual_pixel"], self.long(p))),
                self.at("output", builder.mul(given["output_pixel"], self.long(p))),
            )
            bases, residuals = self.vectors(base, _FLOATS), self.vectors(residual, _FLOATS)
            reached = []
            for v, (scale, shift_in, slope, shift_out, threshold) in enumerate(constants):
                # Whole numbers below 2^24: nothing is rounded, nor would it be in one instruction.
                signs = builder.fsub(bases[v], builder.fmul(builder.sitofp(vectors[v], _FLOATS), self.all(2.0)))
                trunk = builder.fadd(builder.fadd(builder.fmul(signs, scale), residuals[v]), shift_in)
                positive = builder.fcmp_ordered(">", trunk, self.all(0.0))
                trunk = builder.fadd(builder.select(positive, trunk, builder.fmul(trunk, slope)), shift_out)
                self.store(trunk, self.step(output, v * _VECTOR_BYTES))
                reached.append(builder.fcmp_ordered(">=", trunk, threshold))
            word = self.word(reached)
            with builder.if_then(followed, likely=True):
                self.store(word, self.at("next_bits", builder.mul(given["next_pixel"], self.long(p))))
