"""A packed network as C: constant arrays, what computes with them, and what surrounds them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bnfree.errors import InputError
from bnfree.packing.c_source.arena import BLOCK, WORD, Arena, UnitPlace, filled, plan
from bnfree.packing.c_source.arithmetic import ARITHMETICS, CArithmetic
from bnfree.packing.c_source.tables import Tables, string
from bnfree.packing.info import NetworkInfo
from bnfree.packing.layers import PackedLayers, PackedUnit
from bnfree.packing.numba_layout import UnitLayout
from bnfree.packing.numba_layout import filled as filled_array
from bnfree.packing.pixels import Normalization

HERE = Path(__file__).parent
SIGNS, SURROUNDINGS = "binary weights", "borders"
ARITHMETIC_NOTES: dict[CArithmetic, str] = {
    "float": (
        "Compile `@NAME@.c` with `-ffp-contract=off`, as the Makefile does: joined products and sums round\n"
        "otherwise than the network that was checked."
    ),
    "fixed": (
        "All but the logits is computed in whole numbers, which are the same on every processor and cannot\n"
        "overflow; a logit is a 64-bit number times a power of two."
    ),
}


class CSource:
    """The C of a network.

    Args:
        layers: the network.
        info: what is known about it; its mean, std and image_shape are needed.
        name: what the function's name begins with, a word of C.
        arithmetic: what is computed with between the sums of signs: `float`, float32, or `fixed`, whole numbers.

    Raises:
        InputError: an `info` that does not say these, a network that has no units, or constants that are too large for
            whole numbers.
    """

    def __init__(self, layers: PackedLayers, info: NetworkInfo, name: str, arithmetic: CArithmetic = "float") -> None:
        self.layers, self.info, self.name, self.arithmetic = layers, info, name, arithmetic
        if info.normalization is None or info.image_shape is None:
            raise InputError(
                "format='c' needs the images' mean, std and shape, which the data do not say; add the data's options."
            )
        if not layers.units:
            raise InputError("format='c' needs a network with residual units, and this one has none.")
        self.normalization: Normalization = info.normalization
        self.shape: tuple[int, int, int] = info.image_shape
        self.arena: Arena = plan(layers, *self.shape[1:])
        self._tables = Tables()
        self._arithmetic = ARITHMETICS[arithmetic](layers, self.arena, self.shape, self.normalization, self._tables)
        self._left_out = any(bool((unit.weight.scale == 0).any()) for unit in layers.units)
        self._macros: dict[str, int] = self._arithmetic.stem()
        pairs = zip(layers.units, self.arena.units, strict=True)
        units = [self._unit(index, unit, place) for index, (unit, place) in enumerate(pairs)]
        self._units = "static const struct unit units[UNITS] = {\n" + "\n".join(units) + "\n};"
        self._macros |= self._arithmetic.classifier()

    @property
    def sizes(self) -> Counter[str]:
        """Bytes of constants, by what they are."""
        return self._tables.sizes

    def files(self) -> dict[str, str]:
        """Names and texts of the files."""
        names = self.info.class_names or tuple(str(k) for k in range(self.layers.num_classes))
        channels, height, width = self.shape
        capitals = self.name.upper()
        words = {
            "NAME": self.name, "CAPITALS": capitals, "HEIGHT": height, "WIDTH": width, "CHANNELS": channels,
            "PIXELS": channels * height * width, "CLASSES": self.layers.num_classes, "RAM": self.arena.size,
            "CONSTANTS": sum(self.sizes.values()), "TITLE": self._title(), "ORIGIN": self._origin(),
            "MEAN": ", ".join(map(repr, self.normalization.mean)), "STD": ", ".join(map(repr, self.normalization.std)),
            "SHAPE": f"{height} rows of {width} pixels of {channels} numbers",
            "CLASS_NAMES": "\n".join(f"    {string(label)}," for label in names),
        }  # fmt: skip
        source = "\n".join(
            [
                self._preamble(),
                self._tables.text,
                self._units,
                "",
                *map(_read, ("pixels.c", f"{self.arithmetic}.c", "network.c")),
            ]
        )
        texts = {
            f"{self.name}.c": source, f"{self.name}.h": _read("header.h"), "main.c": _read("main.c"),
            "Makefile": _read("Makefile"),
        }  # fmt: skip
        return {file: _replaced(text, words) for file, text in texts.items()}

    def readme(self) -> str:
        """What is in the folder, and what it takes of a device."""
        total = sum(self.sizes.values())
        rows = [(f"{kind}", f"{size}") for kind, size in self.sizes.most_common()]
        flash = "\n".join(f"| {kind} | {size} |" for kind, size in [*rows, ("**constants together**", f"**{total}**")])
        return _replaced(_read("README.md"), {
            "NAME": self.name, "CAPITALS": self.name.upper(), "TITLE": self._title(), "ORIGIN": self._origin(),
            "ARITHMETIC": _replaced(ARITHMETIC_NOTES[self.arithmetic], {"NAME": self.name}), "FLASH": flash,
            "VALUES": 4 * self.arena.values, "WORDS": 4 * self.arena.words, "RAM": self.arena.size,
        })  # fmt: skip

    def _title(self) -> str:
        channels, height, width = self.shape
        return (
            f"{_plain(self.layers.architecture)} for images of {height}x{width}x{channels}, "
            f"{self.layers.num_classes} classes, written by bnfree."
        )

    def _origin(self) -> str:
        source = self.info.source_run
        accuracy = "" if self.info.accuracy is None else f" Accuracy of the network: {self.info.accuracy:.2%}."
        return f"From {_plain(source)}.{accuracy}" if source else f"A binary network.{accuracy}"

    def _preamble(self) -> str:
        number = self._arithmetic.number
        lines = [
            f"/* {self._title()}", f"   {self._origin()} See @NAME@.h. */", "", "#include <stddef.h>",
            "#include <stdint.h>", "", '#include "@NAME@.h"', "",
            *(f"#define {key} {value}" for key, value in self._all_macros().items()),
            "", f"typedef {number} value;", f"typedef {number} constant;", f"typedef {self._base_type()} base_number;",
            "static value values[VALUES];", "static uint32_t words[WORDS];",
            "typedef char ram_is_as_stated[sizeof values + sizeof words == @CAPITALS@_RAM ? 1 : -1];", "",
            _read("counts.c"), _read("unit.h"),
        ]  # fmt: skip
        return "\n".join(lines)

    def _all_macros(self) -> dict[str, int]:
        arena, stem, last = self.arena, self.layers.stem, self.arena.units[-1]
        first = self.layers.units[0].weight.shape
        out_channels = self.layers.units[-1].weight.shape[0]
        channels, height, width = self.shape
        return {
            "FIXED_POINT": int(self.arithmetic == "fixed"), "FILTERS_LEFT_OUT": int(self._left_out),
            "HEIGHT": height, "WIDTH": width, "CHANNELS": channels, "CLASSES": self.layers.num_classes,
            "VALUES": arena.values, "WORDS": arena.words, "UNITS": len(self.layers.units),
            "STEM_SIZE": stem.weight.values.shape[-1], "STEM_STRIDE": stem.stride, "STEM_POOL": int(stem.pool),
            "STEM_ROWS": arena.stem_rows, "STEM_COLUMNS": arena.stem_columns,
            "STEM_BLOCKS": filled(len(stem.bias)) // BLOCK, "STEM_SCRATCH": arena.stem_scratch,
            "TRUNK_HEIGHT": arena.height, "TRUNK_WIDTH": arena.width, "FIRST_PADDING": first[2] // 2,
            "FIRST_WORDS": filled(first[1], WORD) // WORD, "FIRST_BITS": arena.units[0].bits,
            "LAST_PIXELS": last.rows * last.columns, "LAST_BLOCKS": filled(out_channels) // BLOCK,
            "LAST_SCRATCH": arena.last_scratch, "FEATURES": out_channels, **self._macros,
        }  # fmt: skip

    def _base_type(self) -> str:
        # A tap outside of the image counts twice: its words of zeros are taken for -1, which is taken back.
        largest = max(2 * int(np.prod(unit.weight.shape[1:])) for unit in self.layers.units)
        return "int16_t" if largest < 1 << 15 else "int32_t"

    def _unit(self, index: int, unit: PackedUnit, place: UnitPlace) -> str:
        """The unit's entry in the array of units."""
        last = index + 1 == len(self.layers.units)
        following = None if last else self.layers.units[index + 1]
        layout, tables, name = UnitLayout(unit, following), self._tables, f"unit{index}"
        out_channels, in_channels, kernel_size, _ = unit.weight.shape
        blocks, words = filled(out_channels) // BLOCK, filled(in_channels, WORD) // WORD
        (row_cases, rows), (column_cases, columns) = (layout.cases(s) for s in (place.height, place.width))
        # A filter that fills up the last block is one of scale 0, too.
        there = np.ones((blocks, BLOCK), np.bool_)
        if self._left_out:
            there[:] = filled_array(unit.weight.scale.numpy() != 0, 0, blocks * BLOCK).reshape(blocks, BLOCK)
        base = layout.base(row_cases, column_cases)[..., : blocks * BLOCK][..., there.ravel()]
        base = base.astype(np.int16 if self._base_type() == "int16_t" else np.int32)
        weights, masks = (
            "NULL" if words is None else tables.add(f"{name}_{kind}", SIGNS, _of_filters(words, there))
            for kind, words in (("weights", layout.weights), ("masks", layout.masks))
        )
        fields = {
            "weights": weights, "masks": masks,
            "base": tables.share(f"{name}_base", SURROUNDINGS, base if base.size else np.zeros(1, base.dtype)),
            "row_cases": tables.share(f"{name}_rows", SURROUNDINGS, rows.astype(np.uint8)),
            "column_cases": tables.share(f"{name}_columns", SURROUNDINGS, columns.astype(np.uint8)),
            **dict.fromkeys(("projection", "signs", "survivors", "projection_scale"), "NULL"),
            **self._arithmetic.unit(index, layout, blocks), "height": place.height, "width": place.width,
            "rows": place.rows, "columns": place.columns, "channels": in_channels, "outputs": out_channels,
            "filters": int(there.sum()),
            "in_blocks": filled(in_channels) // BLOCK, "blocks": blocks, "words": words, "kernel_size": kernel_size,
            "stride": unit.stride, "cases": len(column_cases), "computed": int(place.computed),
            "backward": int(place.backward),
            "next_padding": 0 if following is None else following.weight.shape[2] // 2,
            "next_words": 0 if following is None else filled(out_channels, WORD) // WORD,
            "scratch": place.scratch, "bits": place.bits, "next_bits": place.next_bits,
        }  # fmt: skip
        if self._left_out:
            numbers = (there << np.arange(BLOCK)).sum(1).astype(np.uint16)
            fields["there"] = tables.share(f"{name}_there", SIGNS, numbers)
        return "    {" + ", ".join(f".{key} = {value}" for key, value in fields.items()) + "},"


def _of_filters(words: NDArray[np.uint32], there: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """(blocks of 32 outputs, taps, words, 32) as (taps, words, filters that are there) of each block of 16 outputs."""
    halves = words.reshape(*words.shape[:3], 2, BLOCK).transpose(0, 3, 1, 2, 4)
    blocks = halves.reshape(-1, *words.shape[1:3], BLOCK)
    found = [block[..., own].ravel() for block, own in zip(blocks, there, strict=False)]
    # Whoever computes 16 filters at once reads that many words, however few are left.
    return np.concatenate(found if there.all() else [*found, np.zeros(BLOCK, np.uint32)])


def _plain(text: str) -> str:
    """What of a text can stand in a comment, whoever wrote it: nothing that ends one."""
    return "".join(c for c in text if c.isalnum() or c in "-_./ ")


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _replaced(text: str, words: Mapping[str, object]) -> str:
    return re.sub(r"@([A-Z_]+)@", lambda found: str(words[found[1]]), text)
