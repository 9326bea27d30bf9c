"""Constant arrays of a C file."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

TYPES = {
    np.dtype(np.uint8): ("uint8_t", "%d"), np.dtype(np.int8): ("int8_t", "%d"),
    np.dtype(np.uint16): ("uint16_t", "0x%04x"), np.dtype(np.int16): ("int16_t", "%d"),
    np.dtype(np.uint32): ("uint32_t", "0x%08xu"), np.dtype(np.int32): ("int32_t", "%d"),
    np.dtype(np.int64): ("int64_t", "%dLL"), np.dtype(np.float32): ("float", ""),
}  # fmt: skip
A_LINE = 10


class Tables:
    """Arrays by name."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._shared: dict[tuple[str, bytes], str] = {}
        self.sizes: Counter[str] = Counter()
        """Bytes of the arrays, by what they are."""

    @property
    def text(self) -> str:
        """The definitions, in C."""
        return "\n".join(self._texts)

    def add(self, name: str, kind: str, values: NDArray[Any]) -> str:
        """Stores numbers, at least one, in C order; gives the array's name.

        Args:
            name: what to call it.
            kind: what it is, for `sizes`.
            values: the numbers.
        """
        flat = np.ascontiguousarray(values).ravel()
        self.sizes[kind] += flat.nbytes
        self._texts.append(f"static const {TYPES[flat.dtype][0]} {name}[{len(flat)}] = {{\n{_lines(flat)}\n}};")
        return name

    def share(self, name: str, kind: str, values: NDArray[Any]) -> str:
        """As `add`, but where an equal array has been shared before, that one's name."""
        key = values.dtype.str, np.ascontiguousarray(values).tobytes()
        if key not in self._shared:
            self._shared[key] = self.add(name, kind, values)
        return self._shared[key]


def _lines(values: NDArray[Any]) -> str:
    words = [real(value) for value in values] if values.dtype == np.float32 else _whole(values)
    return "\n".join("    " + ", ".join(words[i : i + A_LINE]) + "," for i in range(0, len(words), A_LINE))


def _whole(values: NDArray[Any]) -> list[str]:
    form = TYPES[values.dtype][1]
    return [form % value for value in values.tolist()]


def real(value: float) -> str:
    """A float32 as C reads it back, every bit of it."""
    text = f"{float(value):.9g}"
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


def string(text: str) -> str:
    """A string in C, in UTF-8; whatever is no plain character is written as three octal digits."""
    plain = {ord(c) for c in " !#$%&'()*+,-./:;<=>@[]^_`{|}~"}
    codes = text.encode("utf-8", "replace")
    return '"' + "".join(chr(c) if c in plain or (chr(c).isalnum() and c < 128) else f"\\{c:03o}" for c in codes) + '"'
