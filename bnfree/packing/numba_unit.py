"""What the numba engine knows of a layer: one record of addresses and sizes, which compiled code reads.

Layers are arrays of records, so that Python calls compiled code once for a whole network. Trunks are float32
(N, H, W, channels), their channels filled up with zeros to whole words of 32; bits are uint32 (N, H, W + 2 * padding,
words), with words of zeros at the sides.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

BLOCK = 32
"""Channels in a word of bits, and output channels that a kernel computes at once."""
THROUGH, COMPUTED, PROJECTED = 0, 1, 2
"""Where a shortcut comes from: the trunk as it is; pooled, scaled or repeated; or that, then convolved."""

FIELDS = (
    "height", "width", "channels", "kernel_size", "stride", "words", "bits", "weights", "masks",
    "rows", "columns", "blocks", "tile", "base", "base_rows", "base_columns", "constants", "thresholds",
    "shortcut_kind", "shortcut", "shortcut_blocks", "added_blocks", "pooled", "repeats",
    "output", "next_bits", "next_padding",
)  # fmt: skip
"""Fields of a unit, int64: addresses and sizes.

height, width, channels: of the input; `channels` are those that are not filled up.
kernel_size, stride, words: of the convolution; 32-bit words of its input.
bits: its input, uint32 (N, height, width + 2 * padding, words).
weights: signs, uint32 (blocks, taps, words, 32): 32 output channels share a word of activations.
masks: survivors, likewise, or 0 where all weights survive.
rows, columns, blocks: of the output; blocks of 32 channels.
tile: neighbouring pixels that are computed at once, 7 or 8.
base: sums before any difference is counted, float32 (row cases, column cases, blocks * 32): the number of weights that
    meet the image, less what words of zeros at the sides count for.
base_rows, base_columns: int64 per row and column of the output, bytes behind `base` where its case begins.
constants: float32 (blocks, 5, 32): scale, shift in front of the PReLU, slope, shift behind it, threshold of the next
    unit's input.
thresholds: float32 (words * 32,), of this unit's input.
shortcut_kind, shortcut, pooled, repeats: where the shortcut comes from; the address of a computed one, whether it is
    averaged over 2x2, how often its channels are repeated. Its factor is the last field, a float32.
shortcut_blocks, added_blocks: blocks of 32 channels in a computed shortcut; in what is added, of which block b adds
    block b modulo these.
output: where the output is put, or 0: in place of what is added.
next_bits, next_padding: bits of the next unit, or 0; its padding.
"""


REAL_FIELDS = (
    "height", "width", "channels", "kernel_size", "stride", "steps", "input", "weights", "constants",
    "rows", "columns", "blocks", "tile", "output", "pooled", "pooled_rows", "pooled_columns",
)  # fmt: skip
"""Fields of a real convolution, int64: addresses and sizes, named as in a unit where they mean the same.

channels: floats of a pixel of the input in memory.
input: float32 (N, height, width + 2 * padding, channels), zeros at the sides.
steps: values in a row of taps, one behind the other.
weights: float32 (blocks, kernel_size, steps, 32).
constants: float32 (blocks, 2, 32): factor of the sums, what is added then.
output: float32 (N, rows, columns, blocks * 32).
pooled, pooled_rows, pooled_columns: address of the output after max pooling (3x3, stride 2, padding 1), or 0; its size.
"""

PIXEL_FIELDS = (
    "height", "width", "channels", "kernel_size", "stride", "steps", "words", "strips", "strip_row", "weights",
    "scales", "base", "rest", "base_rows", "base_columns", "rows", "columns", "blocks", "output", "pooled",
    "pooled_rows", "pooled_columns",
)  # fmt: skip
"""Fields of a first layer on 8-bit images, int64: addresses and sizes, named as in the others where they mean the same.

words: uint32 (N, height, width): the channels of a pixel in one word, the first in its lowest byte.
strips, strip_row: uint8 (N, rows, strip_row): of each row of the output the pixels that it reads, column by column
    (width + 2 * padding, kernel_size, channels), so that the windows of its pixels lie in one piece each; zeros where
    the image ends.
steps: groups of four bytes in a window.
weights: int8 (blocks, 3, steps, 32, 4): planes of 24-bit weights, the highest first.
scales: float32 (blocks * 32,).
base, rest: (row cases, column cases, blocks * 32): what is subtracted from the sums of the upper two planes, int32, and
    what is added to the scaled sums, float32.
"""


def _digest() -> str:
    """Of the sources that are compiled: numba's cache looks at one file of them, and at the types of arguments."""
    sources = sorted(Path(__file__).parent.glob("numba_*.py"))
    return f"{zlib.crc32(b''.join(source.read_bytes() for source in sources)):08x}"


# Fields without a value, whose name belongs to the type.
_VERSION = (f"sources_{_digest()}", np.int32)
UNIT = np.dtype([*((name, np.int64) for name in FIELDS), ("factor", np.float32), _VERSION])
"""A unit as a record."""
REAL = np.dtype([*((name, np.int64) for name in REAL_FIELDS), _VERSION])
"""A real convolution as a record."""
PIXELS = np.dtype([*((name, np.int64) for name in PIXEL_FIELDS), _VERSION])
"""A first layer on 8-bit images as a record."""
