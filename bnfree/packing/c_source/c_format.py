"""`bnfree export --format c`: a folder with a network in C, an example that classifies raw images, and a Makefile."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from bnfree.errors import InputError
from bnfree.files import whole_file
from bnfree.packing.c_source.arithmetic import ARITHMETICS, CArithmetic
from bnfree.packing.c_source.source import CSource
from bnfree.packing.engines import EngineName
from bnfree.packing.file_layout import MaskForm
from bnfree.packing.formats import ExportFormat
from bnfree.packing.packed_network import PackedNetwork
from bnfree.packing.pixels import Normalization

FLAGS = ("-O3", "-march=native", "-std=c99", "-ffp-contract=off")
RESERVED = ("main", "example")
FIXED_TOLERANCE = 1e-4
"""What an activation in whole numbers may be off; see docs/devices.md."""


class CFormat(ExportFormat):
    """A folder: `NAME.c` and `NAME.h` with the function `NAME_predict`, `main.c`, `Makefile`, `README.md`.

    Args:
        name: NAME, a word of C; None: from the folder's name.
        ram_limit: bytes of static memory that the network may take; None: any number.
        arithmetic: what is computed with between the sums of signs: `float`, float32, or `fixed`, whole numbers.

    Raises:
        InputError: an argument that is not possible.
    """

    weights = "bits, two for each where they are pruned"
    folder = True
    suffix: ClassVar[str] = ""

    def __init__(
        self, name: str | None = None, ram_limit: int | None = None, arithmetic: CArithmetic = "float"
    ) -> None:
        if arithmetic not in ARITHMETICS:
            raise InputError(f"c_arithmetic={arithmetic!r} is not known; choose one of {', '.join(ARITHMETICS)}.")
        if name is not None and (not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII) or name in RESERVED):
            raise InputError(
                f"c_name={name!r} must be a word of letters, digits and underscores that begins with a letter, and not "
                "main or example."
            )
        if ram_limit is not None and ram_limit < 1:
            raise InputError(f"ram_limit={ram_limit} must be at least 1.")
        self.name, self.ram_limit, self.arithmetic = name, ram_limit, arithmetic
        if arithmetic == "fixed":
            self.tolerance = FIXED_TOLERANCE

    def files(self, path: Path) -> list[Path]:
        """The files in the folder `path`."""
        name = self._name(path)
        return [path / file for file in (f"{name}.c", f"{name}.h", "main.c", "Makefile", "README.md")]

    def write(self, packed: PackedNetwork, path: Path, masks: MaskForm) -> None:
        """Writes the files.

        Args:
            packed: the network; its mean, std and image_shape must be known.
            path: the folder, which is made.
            masks: not looked at.

        Raises:
            InputError: a network that is not known well enough, or that needs more memory than the limit.
        """
        source = self._source(packed, path)
        texts = {**source.files(), "README.md": source.readme()}
        for file, text in texts.items():
            with whole_file(path / file) as unfinished:
                unfinished.write_text(text, encoding="utf-8")

    def read(self, path: Path, engine: EngineName) -> Callable[[Tensor], Tensor]:
        """What computes logits with the C in a folder, compiled for this machine.

        Raises:
            InputError: there is no C compiler, or it fails.
        """
        return CompiledNetwork(path, self._name(path))

    def facts(self, packed: PackedNetwork, path: Path) -> list[tuple[str, str]]:
        """Title and text of what the user should know about the files in the folder `path`."""
        source = self._source(packed, path)
        constants = sum(source.sizes.values())
        return [
            ("function", f"int {source.name}_predict(const uint8_t *pixels, float *logits)"),
            ("flash", f"{constants / 1e3:.1f} kB of constants, and the code: 5 to 20 kB, see make size"),
            ("RAM", f"{source.arena.size / 1e3:.1f} kB of static memory, and about 1 kB of stack"),
        ]

    def _source(self, packed: PackedNetwork, path: Path) -> CSource:
        source = CSource(packed.layers, packed.info, self._name(path), self.arithmetic)
        if self.ram_limit is not None and source.arena.size > self.ram_limit:
            raise InputError(
                f"ram_limit={self.ram_limit} is too little: the network takes {source.arena.size} bytes of static "
                f"memory for images of {'x'.join(map(str, source.shape))}."
            )
        return source

    def _name(self, path: Path) -> str:
        if self.name is not None:
            return self.name
        word = re.sub(r"\W", "_", path.name, flags=re.ASCII)
        return word if word[:1].isalpha() and word not in RESERVED else f"network_{word}"


class CompiledNetwork:
    """The network in a folder, from images (N, C, H, W), 8-bit or normalised, to logits (N, num_classes).

    Args:
        folder: with NAME.c and NAME.h.
        name: NAME.
        flags: of the compiler, which is $CC or cc.

    Raises:
        InputError: there is no C compiler, or it fails.
    """

    def __init__(self, folder: Path, name: str, flags: tuple[str, ...] = FLAGS) -> None:
        header = (folder / f"{name}.h").read_text(encoding="utf-8")
        found = re.findall(r"^#define \w+_(HEIGHT|WIDTH|CHANNELS|CLASSES) (\d+)", header, re.MULTILINE)
        sizes = {key: int(value) for key, value in found}
        self.shape = sizes["CHANNELS"], sizes["HEIGHT"], sizes["WIDTH"]
        self.num_classes = sizes["CLASSES"]
        self.normalization = _normalization(header)
        with tempfile.TemporaryDirectory() as place:
            library = Path(place) / f"{name}.so"
            compile_c([*flags, "-shared", "-fPIC", "-o", library, folder / f"{name}.c"])
            self._predict = getattr(ctypes.CDLL(str(library)), f"{name}_predict")

    def __call__(self, images: Tensor) -> Tensor:
        """Logits, float32.

        Raises:
            InputError: images of another shape, or normalised ones that are not made of 8-bit ones.
        """
        if tuple(images.shape[1:]) != self.shape:
            raise InputError(
                f"images has shape {tuple(images.shape)}; the C takes (N, {', '.join(map(str, self.shape))})."
            )
        pixels = images if images.dtype == torch.uint8 else self.normalization.pixels(images)
        if pixels is None:
            raise InputError("images are not made of 8-bit ones, which alone the C takes.")
        pixels = pixels.permute(0, 2, 3, 1).contiguous()
        logits = torch.empty(len(pixels), self.num_classes)
        for image, row in zip(pixels, logits, strict=True):
            self._predict(ctypes.c_void_p(image.data_ptr()), ctypes.c_void_p(row.data_ptr()))
        return logits


def compile_c(arguments: list[str | Path]) -> None:
    """Runs the C compiler, $CC or cc.

    Raises:
        InputError: there is none, or it fails.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise InputError("check=True in the format c needs a C compiler, and there is no cc; install one, or set CC.")
    done = subprocess.run([compiler, *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InputError(f"the C compiler has failed: {done.stderr.strip()[:500]}")


def _normalization(header: str) -> Normalization:
    found = {}
    for key in ("mean", "std"):
        line = re.search(rf"^   {key}: (.*)$", header, re.MULTILINE)
        if line is None:
            raise InputError(f"the header does not say its {key}.")
        found[key] = tuple(float(value) for value in line[1].split(", "))
    return Normalization(found["mean"], found["std"])
