"""Networks in C, compiled for this machine, whose parts a test can call."""

import ctypes
import os
import shutil
import subprocess

import pytest
import torch

from bnfree.packing.c_source.source import CSource

STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-ffp-contract=off")
COMPILER = shutil.which(os.environ.get("CC", "cc"))
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler; apt-get install gcc libc6-dev")
# What is static in the file can be called from a file that includes it.
PARTS = """
#include <string.h>
#include "net.c"

void stem_alone(const uint8_t *pixels, float *trunk)
{
    run_stem(pixels);
    memcpy(trunk, values, sizeof(float) * TRUNK_HEIGHT * TRUNK_WIDTH * STEM_BLOCKS * BLOCK);
}

void units_alone(const float *trunk, float *output)
{
    memcpy(values, trunk, sizeof(float) * TRUNK_HEIGHT * TRUNK_WIDTH * STEM_BLOCKS * BLOCK);
    binarize();
    for (int i = 0; i < UNITS; i++)
        run_unit(units + i);
    memcpy(output, values, sizeof(float) * LAST_PIXELS * LAST_BLOCKS * BLOCK);
}
"""


def write_c(folder, layers, info, arithmetic="float"):
    """Writes `net.c` and what belongs to it; gives the source."""
    source = CSource(layers, info, "net", arithmetic)
    folder.mkdir(exist_ok=True)
    for name, text in source.files().items():
        (folder / name).write_text(text)
    return source


def run(*words, **options):
    """What a program prints."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def example(folder, compiler, *flags):
    """The example program, compiled."""
    program = folder / "example"
    run(compiler, *STRICT, *flags, "-o", program, folder / "net.c", folder / "main.c")
    return program


def raw(path, pixels):
    """A file of 8-bit images (N, C, H, W) as the example reads it."""
    path.write_bytes(pixels.permute(0, 2, 3, 1).contiguous().numpy().tobytes())
    return path


def answers(text, num_classes):
    """Classes (N,) and logits (N, num_classes) in what the example prints."""
    rows = [line.split() for line in text.splitlines()]
    logits = [[float(word) for word in row[-num_classes:]] for row in rows]
    return torch.tensor([int(row[0]) for row in rows]), torch.tensor(logits)


class Parts:
    """The stem and the units of a network in C.

    Args:
        folder: where to write and compile.
        layers: the network.
        info: what is known about it.
        flags: of the compiler.
    """

    def __init__(self, folder, layers, info, *flags):
        self.source, self.layers = write_c(folder, layers, info), layers
        (folder / "parts.c").write_text(PARTS)
        library = folder / "parts.so"
        run(COMPILER, *STRICT, *flags, "-shared", "-fPIC", "-o", library, folder / "parts.c")
        self._library = ctypes.CDLL(str(library))

    def stem(self, pixels):
        """The first layer's output, pooled, (1, O, H, W), of an 8-bit image (1, C, H, W)."""
        arena, channels = self.source.arena, len(self.layers.stem.bias)
        output = torch.zeros(1, arena.height, arena.width, -(-channels // 16) * 16)
        self._call("stem_alone", pixels.permute(0, 2, 3, 1).contiguous(), output)
        return output[..., :channels].permute(0, 3, 1, 2)

    def units(self, trunk):
        """The last unit's output (1, O, H', W') of the first one's input (1, I, H, W)."""
        place, channels = self.source.arena.units[-1], self.layers.units[-1].weight.shape[0]
        full = torch.zeros(*trunk.shape[2:], -(-trunk.shape[1] // 16) * 16)
        full[..., : trunk.shape[1]] = trunk[0].permute(1, 2, 0)
        output = torch.zeros(1, place.rows, place.columns, -(-channels // 16) * 16)
        self._call("units_alone", full, output)
        return output[..., :channels].permute(0, 3, 1, 2)

    def _call(self, name, source, output):
        getattr(self._library, name)(ctypes.c_void_p(source.data_ptr()), ctypes.c_void_p(output.data_ptr()))
