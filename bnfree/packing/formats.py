"""Formats that a network is exported to: how their files are written, and read back to be checked.

A format of one's own is a class with a suffix and `write`; by its dotted path it goes wherever a built-in name does:

    class Constants(ExportFormat):
        suffix = ".pt"

        def write(self, packed, path, masks):
            torch.save(dict(tensors_of(packed.layers)), path)

    bnfree export RUN --format=my_formats.Constants
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from bnfree.errors import InputError
from bnfree.packing.engines import EngineName
from bnfree.packing.file_layout import MaskForm
from bnfree.packing.packed_network import PackedNetwork, load
from bnfree.packing.real_weights import RealPrecision
from bnfree.plugins import resolve


class ExportFormat:
    """A kind of file; an object without arguments is made of the class."""

    suffix: ClassVar[str]
    """What its files' names end in."""
    weights: ClassVar[str] = "the format has them"
    """As what it holds the binary weights, for the user."""
    packages: ClassVar[Sequence[str]] = ()
    """What must be installed for it."""
    extra: ClassVar[str] = ""
    """The extra of bnfree that installs it, if there is one."""
    beside: ClassVar[Sequence[str]] = ()
    """Suffixes of further files that belong to it."""
    has_forms: ClassVar[bool] = False
    """Whether masks can be stored in several forms in it."""
    precisions: ClassVar[Sequence[RealPrecision]] = ("float32",)
    """How it can store real layers; the first is what `export` takes for the classifier."""
    read_packages: ClassVar[Sequence[str]] = ()
    """What must be installed besides to read it."""
    folder: ClassVar[bool] = False
    """Whether it is a folder of files, and `path` that of the folder."""
    tolerance: float = 1e-6
    """How near to its threshold, relative to its layer's root mean square, rounding may turn an activation over."""

    def write(self, packed: PackedNetwork, path: Path, masks: MaskForm) -> None:
        """Writes a network.

        Args:
            packed: the network, and what is known about its images and classes.
            path: the file; those of `beside` have the same name with another suffix.
            masks: how masks are stored; `planes` unless the format has several forms.

        Raises:
            InputError: a network that the format cannot hold.
        """
        raise NotImplementedError

    def read(self, path: Path, engine: EngineName) -> Callable[[Tensor], Tensor]:
        """What computes logits (N, num_classes) from normalised images (N, C, H, W), read from a file.

        Args:
            path: the file.
            engine: what computes a packed file.

        Raises:
            InputError: files of this format are not read here.
        """
        raise InputError(f"check=True needs a format that can be read, and {type(self).__name__} has no method read.")

    def check_installed(self, name: str, reading: bool = False) -> None:
        """Refuses a format whose packages are missing.

        Args:
            name: what the user calls it.
            reading: whether its files are to be read as well.

        Raises:
            InputError: one is not installed.
        """
        needed = [*self.packages, *(self.read_packages if reading else ())]
        missing = [package for package in needed if importlib.util.find_spec(package) is None]
        if missing:
            what = f"bnfree[{self.extra}]" if self.extra else " ".join(missing)
            raise InputError(
                f"format={name!r} needs {' and '.join(missing)}, which is not installed: pip install '{what}'."
            )

    def facts(self, packed: PackedNetwork, path: Path) -> list[tuple[str, str]]:
        """Title and text of what else the user should know about files written to `path`."""
        return []

    def files(self, path: Path) -> list[Path]:
        """The files of a network that is exported to `path`."""
        return [path, *(path.with_suffix(suffix) for suffix in self.beside)]


def export_format(given: Any) -> ExportFormat:
    """The format of a name, of a dotted path or of a class; an object stays as it is.

    Raises:
        InputError: there is none, or it is not a format.

    Example:
        >>> export_format("onnx").suffix
        '.onnx'
    """
    found = resolve("export_format", given, "format")
    made = found() if isinstance(found, type) else found
    if not isinstance(getattr(made, "suffix", None), str) or not callable(getattr(made, "write", None)):
        raise InputError(f"format={given!r} is no format; give a subclass of bnfree.packing.formats.ExportFormat.")
    format_: ExportFormat = made
    return format_


class PackedFormat(ExportFormat):
    """A safetensors file of bits, see `bnfree.packing.file_format`."""

    suffix = ".safetensors"
    weights = "bits"
    has_forms = True
    precisions = ("float16", "float32", "int8")

    def write(self, packed: PackedNetwork, path: Path, masks: MaskForm) -> None:
        """Writes a network."""
        packed.save(path, masks)

    def read(self, path: Path, engine: EngineName) -> Callable[[Tensor], Tensor]:
        """The packed network of a file."""
        return load(path, engine)


class OpenVINOFormat(ExportFormat):
    """OpenVINO's intermediate representation, with its own binary convolution."""

    suffix = ".xml"
    weights = "bits, two for each where they are pruned"
    packages = ("openvino",)
    extra = "openvino"
    beside = (".bin",)

    def write(self, packed: PackedNetwork, path: Path, masks: MaskForm) -> None:
        """Writes a network whose images' shape is known."""
        from bnfree.packing.openvino_engine import save_openvino

        if packed.info.image_shape is None:
            raise InputError(
                "format='openvino' needs the images' shape, which the data do not say; add --image_shape=C,H,W."
            )
        save_openvino(packed.layers, packed.info, path, packed.info.image_shape)

    def read(self, path: Path, engine: EngineName) -> Callable[[Tensor], Tensor]:
        """The compiled network of a file."""
        from bnfree.packing.openvino_engine import OpenVINONetwork

        return OpenVINONetwork.of_file(path)


class TorchExportFormat(ExportFormat):
    """A program of `torch.export`."""

    suffix = ".pt2"
    weights = "float32 numbers -1, 0 and +1"

    def write(self, packed: PackedNetwork, path: Path, masks: MaskForm) -> None:
        """Writes a network."""
        from bnfree.packing.torch_program import save_program

        save_program(packed.layers, packed.info, path)

    def read(self, path: Path, engine: EngineName) -> Callable[[Tensor], Tensor]:
        """The program of a file."""
        from bnfree.packing.torch_program import load_program

        return load_program(path)


class ONNXFormat(ExportFormat):
    """A model in the Open Neural Network Exchange format."""

    suffix = ".onnx"
    weights = "float32 numbers -1, 0 and +1"
    packages = ("onnx", "onnxscript")
    extra = "onnx"

    def write(self, packed: PackedNetwork, path: Path, masks: MaskForm) -> None:
        """Writes a network."""
        from bnfree.packing.onnx_model import save_onnx

        save_onnx(packed.layers, packed.info, path)

    def read(self, path: Path, engine: EngineName) -> Callable[[Tensor], Tensor]:
        """The model of a file."""
        from bnfree.packing.onnx_model import load_onnx

        return load_onnx(path)


class QONNXFormat(ExportFormat):
    """ONNX whose nodes say what has one bit, for FPGAs: see `bnfree.packing.qonnx_model`."""

    suffix = ".onnx"
    weights = "numbers -1 and +1 behind BipolarQuant, or -1, 0 and +1 behind Quant of two bits"
    packages = ("onnx",)
    read_packages = ("qonnx",)
    extra = "qonnx"
    precisions = ("float32", "int8")
    channels_last: ClassVar[bool] = False
    """Whether the images are (N, H, W, C)."""

    def write(self, packed: PackedNetwork, path: Path, masks: MaskForm) -> None:
        """Writes a network whose images' shape is known."""
        from bnfree.packing.qonnx_model import save_qonnx

        if packed.info.image_shape is None:
            raise InputError(
                "format='qonnx' needs the images' shape, which the data do not say; add --image_shape=C,H,W."
            )
        save_qonnx(packed.layers, packed.info, path, self.channels_last)

    def read(self, path: Path, engine: EngineName) -> Callable[[Tensor], Tensor]:
        """The model of a file, computed by qonnx."""
        from bnfree.packing.qonnx_model import load_qonnx

        return load_qonnx(path)


class QONNXChannelsLastFormat(QONNXFormat):
    """The form that hls4ml reads: channels last, no PRelu, no average pooling, no bits outside of the image."""

    channels_last = True
