"""The formats that a network is exported to: how their files are written, and read back to be checked."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from bnfree.errors import InputError
from bnfree.packing import PackedNetwork, load
from bnfree.packing.engines import EngineName
from bnfree.packing.file_layout import Masks

NetworkFunction = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Format:
    """A kind of file."""

    suffix: str
    """What its files' names end in."""
    weights: str
    """How it holds the binary weights, for the user."""
    write: Callable[[PackedNetwork, Path, Masks], None]
    read: Callable[[Path, EngineName], NetworkFunction]
    packages: Sequence[str] = ()
    """What must be installed for it."""
    extra: str = ""
    """The extra that installs it."""
    beside: Sequence[str] = ()
    """Suffixes of further files that belong to it."""

    def check_installed(self, name: str) -> None:
        """Refuses a format whose packages are missing.

        Raises:
            InputError: one is not installed.
        """
        missing = [package for package in self.packages if importlib.util.find_spec(package) is None]
        if missing:
            raise InputError(
                f"format={name!r} needs {' and '.join(missing)}, which is not installed: pip install "
                f"'bnfree[{self.extra}]'."
            )

    def files(self, path: Path) -> list[Path]:
        """The files of a network that is exported to `path`."""
        return [path, *(path.with_suffix(suffix) for suffix in self.beside)]


def _write_packed(packed: PackedNetwork, path: Path, masks: Masks) -> None:
    packed.save(path, masks)


def _write_openvino(packed: PackedNetwork, path: Path, masks: Masks) -> None:
    from bnfree.packing.openvino_engine import save_openvino

    if packed.info.image_shape is None:
        raise InputError(
            "format='openvino' needs the images' shape, which the data do not say; add --image_shape=C,H,W."
        )
    save_openvino(packed.layers, packed.info, path, packed.info.image_shape)


def _read_openvino(path: Path, engine: EngineName) -> NetworkFunction:
    from bnfree.packing.openvino_engine import OpenVINONetwork

    return OpenVINONetwork.of_file(path)


def _write_program(packed: PackedNetwork, path: Path, masks: Masks) -> None:
    from bnfree.packing.torch_program import save_program

    save_program(packed.layers, packed.info, path)


def _read_program(path: Path, engine: EngineName) -> NetworkFunction:
    from bnfree.packing.torch_program import load_program

    return load_program(path)


def _write_onnx(packed: PackedNetwork, path: Path, masks: Masks) -> None:
    from bnfree.packing.onnx_model import save_onnx

    save_onnx(packed.layers, packed.info, path)


def _read_onnx(path: Path, engine: EngineName) -> NetworkFunction:
    from bnfree.packing.onnx_model import load_onnx

    return load_onnx(path)


FORMATS = {
    "packed": Format(".safetensors", "bits", _write_packed, load),
    "openvino": Format(
        ".xml", "bits, two for each where they are pruned", _write_openvino, _read_openvino, ["openvino"], "openvino",
        [".bin"],
    ),
    "torch_export": Format(".pt2", "float32 numbers -1, 0 and +1", _write_program, _read_program),
    "onnx": Format(
        ".onnx", "float32 numbers -1, 0 and +1", _write_onnx, _read_onnx, ["onnx", "onnxscript"], "onnx"
    ),
}  # fmt: skip
