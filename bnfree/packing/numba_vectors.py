"""Vector code for numba, which has no vectors: 32 channels at once, written in LLVM's own terms."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from bnfree.packing.numba_unit import BLOCK

LANES = 16
VECTORS = BLOCK // LANES
VECTOR_BYTES = 4 * LANES
BYTE, INT, LONG = ir.IntType(8), ir.IntType(32), ir.IntType(64)
INTS, FLOATS = ir.VectorType(INT, LANES), ir.VectorType(ir.FloatType(), LANES)


def tile_of(arguments: tuple[str, ...], emit: Callable[[Code], None]) -> Any:
    """A function for compiled code, which takes a tuple of int64 by these names and has no result."""

    @intrinsic
    def tile(typing_context: Any, values: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            emit(Code(builder, dict(zip(arguments, cgutils.unpack_tuple(builder, given[0]), strict=True))))
            return context.get_dummy_value()

        return types.void(types.UniTuple(types.int64, len(arguments))), generate

    return tile


@intrinsic
def compare(typing_context: Any, values: Any, thresholds: Any) -> Any:
    """The bits of 32 float32 at an address, compared with the thresholds at another, as uint32."""

    def generate(context: Any, builder: Any, signature: Any, addresses: Any) -> Any:
        code = Code(builder, dict(zip(("values", "thresholds"), addresses, strict=True)))
        pairs = zip(*(code.vectors(code.at(name, 0), FLOATS) for name in code.arguments), strict=True)
        return code.word(builder.fcmp_ordered(">=", value, threshold) for value, threshold in pairs)

    return types.uint32(types.int64, types.int64), generate


@intrinsic
def copy_word(typing_context: Any, source: Any, place: Any) -> Any:
    """Copies 4 bytes from one address to another, which need not be multiples of 4."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointers = [builder.inttoptr(address, INT.as_pointer()) for address in arguments]
        builder.store(builder.load(pointers[0], align=1), pointers[1], align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


class Code:
    """Emits loads, stores and what else vectors need; addresses by their names."""

    def __init__(self, builder: ir.IRBuilder, arguments: dict[str, Any]) -> None:
        self.builder, self.arguments = builder, arguments

    def at(self, name: str, offset: Any) -> Any:
        """Pointer some bytes behind the address in an argument."""
        return self.step(self.builder.inttoptr(self.arguments[name], BYTE.as_pointer()), offset)

    def step(self, pointer: Any, offset: Any) -> Any:
        """Pointer some bytes behind another."""
        return self.builder.gep(pointer, [offset if isinstance(offset, ir.Value) else self.long(offset)])

    def vectors(self, pointer: Any, kind: Any) -> list[Any]:
        """The 32 values at a pointer."""
        return [self.load(self.step(pointer, v * VECTOR_BYTES), kind) for v in range(VECTORS)]

    def load(self, pointer: Any, kind: Any) -> Any:
        """The value of a kind at a pointer."""
        return self.builder.load(self.builder.bitcast(pointer, kind.as_pointer()), align=4)

    def store(self, value: Any, pointer: Any) -> None:
        """Puts a value at a pointer."""
        self.builder.store(value, self.builder.bitcast(pointer, value.type.as_pointer()), align=4)

    def broadcast(self, value: Any, kind: Any) -> Any:
        """A vector of one value."""
        first = self.builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(INT, 0))
        return self.builder.shuffle_vector(first, first, ir.Constant(INTS, [0] * LANES))

    def call(self, name: str, kind: Any, *values: Any) -> Any:
        """LLVM's own function for a kind of vector, from vectors to one."""
        suffix = f"v{LANES}{'f' if kind is FLOATS else 'i'}32"
        signature = ir.FunctionType(kind, [kind] * len(values))
        return self.builder.call(
            cgutils.get_or_insert_function(self.builder.module, signature, f"llvm.{name}.{suffix}"), values
        )

    @staticmethod
    def long(value: int) -> Any:
        """A constant, int64."""
        return ir.Constant(LONG, value)

    @staticmethod
    def all(value: float) -> Any:
        """A vector of a constant, float32."""
        return ir.Constant(FLOATS, [value] * LANES)

    def word(self, bits: Iterable[Any]) -> Any:
        """Vectors of bits as one integer, the first in its lowest bits."""
        word: Any = ir.Constant(INT, 0)
        for v, vector in enumerate(bits):
            lanes = self.builder.zext(self.builder.bitcast(vector, ir.IntType(LANES)), INT)
            word = self.builder.or_(word, self.builder.shl(lanes, ir.Constant(INT, v * LANES)))
        return word

    def convolve(self, pixels: int, kind: Any, streams: tuple[str, ...], body: Callable[..., Any]) -> list[list[Any]]:
        """Sums over the taps of some pixels, for 32 output channels.

        Args:
            pixels: number of neighbouring pixels.
            kind: type of vector of the sums.
            streams: names of what goes along with the taps, the weights first, (tap_rows, steps, 32) of 4 bytes.
            body: from a sum, a vector of the input's value and one of each stream to the new sum.

        Returns:
            Vectors of each pixel. Reads the arguments `input`, `input_row`, `input_pixel`, `tap_rows` and `steps`.
        """
        builder, given = self.builder, self.arguments
        zero = ir.Constant(kind, [0] * LANES)
        sums = [[cgutils.alloca_once(builder, kind) for _ in range(VECTORS)] for _ in range(pixels)]
        for pixel in sums:
            for place in pixel:
                builder.store(zero, place)
        row_bytes = builder.mul(given["steps"], self.long(4 * BLOCK))
        inputs = [self.at("input", builder.mul(given["input_pixel"], self.long(p))) for p in range(pixels)]
        with cgutils.for_range(builder, given["tap_rows"]) as row:
            rows = [self.step(pixel, builder.mul(row.index, given["input_row"])) for pixel in inputs]
            starts = [self.at(name, builder.mul(row.index, row_bytes)) for name in streams]
            with cgutils.for_range(builder, given["steps"]) as step:
                behind = builder.mul(step.index, self.long(4 * BLOCK))
                vectors = list(zip(*(self.vectors(self.step(start, behind), kind) for start in starts), strict=True))
                for pixel, places in zip(rows, sums, strict=True):
                    place = self.step(pixel, builder.mul(step.index, self.long(4)))
                    # Windows of 8-bit images begin at any byte.
                    value = builder.load(builder.bitcast(place, kind.element.as_pointer()), align=1)
                    spread = self.broadcast(value, kind)
                    for place, others in zip(places, vectors, strict=True):
                        builder.store(body(builder.load(place), spread, *others), place)
        return [[builder.load(place) for place in pixel] for pixel in sums]
