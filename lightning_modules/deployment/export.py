"""A checkpoint becomes a file for inference."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule
from torch import Tensor

from bnfree.datamodules.base import ImageDataModule
from bnfree.errors import InputError, MachineError
from bnfree.files import full_disk, is_full_disk
from bnfree.lightning_modules.deployment.check import Check, check
from bnfree.lightning_modules.deployment.image_batches import find_images, read_batches
from bnfree.lightning_modules.deployment.network_info import network_info
from bnfree.lightning_modules.deployment.packed_files import names_packed_file, open_packed, packed_path
from bnfree.lightning_modules.training.config.parser import build_data
from bnfree.lightning_modules.training.network import (
    build_network,
    image_shape,
    load_weights,
    read_description,
)
from bnfree.packing import NetworkInfo, PackedNetwork, pack
from bnfree.packing.c_source.arithmetic import CArithmetic
from bnfree.packing.c_source.c_format import CFormat
from bnfree.packing.engines import EngineName, choose_engine
from bnfree.packing.file_layout import MaskForm
from bnfree.packing.formats import ExportFormat, export_format
from bnfree.packing.preprocessing import check_readable
from bnfree.packing.real_weights import RealPrecision
from bnfree.packing.unpacked_network import UnpackedNetwork

NO_CHECKPOINT = "the checkpoint is not given; name it: bnfree export RUN/checkpoints/best.ckpt."
Batches = Iterator[tuple[Tensor, Tensor | None]]
"""Normalised images (N, C, H, W), and their labels (N,) where they are known."""


@dataclass(frozen=True)
class ExportSettings:
    """What is exported, and how."""

    source: str | Path | Namespace
    """Checkpoint, ticket file, or run directory, of which it is the last checkpoint; a packed file or the name of a
    pretrained network; or what a parser has read."""
    output: str | Path | None = None
    """File to write, of the format `c` a folder; None: beside the checkpoint, under its name."""
    format: str | type[ExportFormat] | ExportFormat = "packed"
    """`packed`, `c`, `openvino`, `torch_export`, `onnx` or `qonnx`, the dotted path of a class, or the class itself."""
    overwrite: bool = False
    """Replace a file that is there."""
    classifier_precision: RealPrecision | None = None
    """How the classifier is stored; None: float16 in a packed file, else float32."""
    convolution_precision: RealPrecision | None = None
    """How stem and real shortcuts are stored; None: float32, for rounding turns activations over."""
    masks: MaskForm = "planes"
    """How a packed file stores pruned binary weights: two bit planes, or five ternary digits a byte."""
    check: bool = False
    """Compare the file with the trained network on real images before it takes its place."""
    images: str | Path | None = None
    """Folder of images to check on; None: the run's test images, or else its validation images."""
    num_images: int = 1000
    """How many images to check on, at most."""
    engine: EngineName = "auto"
    """What the check runs a packed file with."""
    c_name: str | None = None
    """What the function of the format `c` is called, before `_predict`; None: as the folder."""
    ram_limit: int | None = None
    """Bytes of static memory that a network in the format `c` may take; None: any number."""
    c_arithmetic: CArithmetic | None = None
    """What the format `c` computes with between the sums of signs: float32, or whole numbers; None: float32."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Plain values by dotted name that beat what the checkpoint remembers, such as `{"data.data_dir": "data"}`."""


@dataclass(frozen=True)
class ExportResult:
    """What has been exported."""

    paths: tuple[Path, ...]
    """The files; none if the check has failed."""
    size: int
    """Bytes of the files together."""
    float32_size: int
    """Bytes of the trained network's parameters in float32."""
    sha256: str
    """Checksum of the first file, in hexadecimal digits; empty if there is none."""
    packed: PackedNetwork
    """The network that the file holds; its `info` is what the file says about images and classes."""
    format: ExportFormat
    """The format."""
    check: Check | None
    """The check's counts; None: not checked."""
    checked_on: str
    """What the images of the check are, in words."""
    missing_data: str
    """Why the data are not there, so that the file says of them only what is known without; empty: they are."""


def export(settings: ExportSettings) -> ExportResult:
    """Turns a trained network with binary weights into a file for inference.

    The file is there as a whole or not at all. With `check` it is read back and compared with the trained network on
    real images; where they differ without a reason, nothing is written.

    Args:
        settings: what is exported, and how.

    Raises:
        InputError: a checkpoint that cannot be read or packed, settings that do not go together, a file that is there
            already or cannot be written, an unknown format or one whose packages are missing.

    Example:
        >>> from bnfree.lightning_modules import ExportSettings, export
        >>> found = export(ExportSettings("runs/a/checkpoints/best.ckpt", check=True))  # doctest: +SKIP
        >>> found.size, found.check.passed  # doctest: +SKIP
        (95208, True)
    """
    kind = _format(settings)
    if isinstance(settings.source, (str, Path)) and names_packed_file(str(settings.source)):
        return _export_packed(settings, kind)
    config = settings.source
    if not isinstance(config, Namespace):
        config = read_description(config, settings.options)
    if config.ckpt_path is None:
        raise InputError(NO_CHECKPOINT)
    place = _place(settings, kind, Path(config.ckpt_path))
    kind.check_installed(str(settings.format), settings.check)
    precisions = _precisions(settings, kind)
    engine: EngineName = choose_engine(settings.engine) if settings.check else "torch"
    network, prefix = build_network(config)
    load_weights(network, prefix, config.ckpt_path, config.weights_only is not False)
    packed = pack(network, *precisions, engine=engine)
    data, why = _open_data(config)
    given_shape = image_shape(config, network) if config.image_shape is not None else None
    info = network_info(data, config, packed.num_classes, given_shape)
    batches, checked_on = _batches(settings, data, why, info) if settings.check else (iter(()), "")
    packed = PackedNetwork(packed.layers, info, engine)

    with _unfinished(kind, place) as (unfinished, finish):
        result = None
        _write(kind, packed, unfinished, settings.masks, place)
        if settings.check:
            exact = pack(network, "float32", "float32", info, engine)
            rounded = packed if precisions != ("float32", "float32") else None
            result = check(network.float(), kind.read(unfinished, engine), rounded, exact, batches, kind.tolerance)
            if info.accuracy is None and settings.images is None and checked_on.startswith("all test images"):
                packed = PackedNetwork(packed.layers, replace(info, accuracy=result.accuracy), engine)
                _write(kind, packed, unfinished, settings.masks, place)
        paths = () if result is not None and not result.passed else finish()
    real = sum(value.numel() for value in network.parameters()) * 4
    return _result(kind, packed, paths, real, result, checked_on, why)


def _export_packed(settings: ExportSettings, kind: ExportFormat) -> ExportResult:
    """A packed file, or a pretrained network, in another format."""
    if settings.check:
        raise InputError("check=True compares with the trained network; give its checkpoint in place of a packed file.")
    for name in ("classifier_precision", "convolution_precision"):
        if getattr(settings, name) is not None:
            raise InputError(f"{name} goes with a checkpoint; real layers of a packed file are rounded already.")
    source = packed_path(str(settings.source))
    place = _place(settings, kind, source if source == Path(settings.source) else Path(source.name))
    kind.check_installed(str(settings.format))
    packed = open_packed(source, "torch")
    with _unfinished(kind, place) as (unfinished, finish):
        _write(kind, packed, unfinished, settings.masks, place)
        paths = finish()
    real = sum(tensor.numel() for tensor in UnpackedNetwork(packed.layers).buffers()) * 4
    return _result(kind, packed, paths, real)


def _result(
    kind: ExportFormat,
    packed: PackedNetwork,
    paths: tuple[Path, ...],
    float32_size: int,
    result: Check | None = None,
    checked_on: str = "",
    missing_data: str = "",
) -> ExportResult:
    return ExportResult(
        paths=paths,
        size=sum(path.stat().st_size for path in paths),
        float32_size=float32_size,
        sha256=hashlib.sha256(paths[0].read_bytes()).hexdigest() if paths else "",
        packed=packed,
        format=kind,
        check=result,
        checked_on=checked_on,
        missing_data=missing_data,
    )


def _format(settings: ExportSettings) -> ExportFormat:
    kind = export_format(settings.format)
    for name in ("c_name", "ram_limit", "c_arithmetic"):
        if getattr(settings, name) is not None and not isinstance(kind, CFormat):
            raise InputError(f"{name} goes with the format c.")
    if type(kind) is CFormat and not isinstance(settings.format, CFormat):
        return CFormat(settings.c_name, settings.ram_limit, settings.c_arithmetic or "float")
    return kind


@contextmanager
def _unfinished(kind: ExportFormat, place: Path) -> Iterator[tuple[Path, Callable[[], tuple[Path, ...]]]]:
    """Where to write first, and what gives the files their names then; nothing is left behind."""
    unfinished = place.with_name(f".{place.stem}.unfinished{place.suffix}")
    # A folder's files are called after it.
    unfinished = unfinished / place.name if kind.folder else unfinished

    def finish() -> tuple[Path, ...]:
        if kind.folder:
            place.mkdir(exist_ok=True)
        for old, new in zip(kind.files(unfinished), kind.files(place), strict=True):
            old.replace(new)
        return tuple(kind.files(place))

    try:
        yield unfinished, finish
    finally:
        for file in kind.files(unfinished):
            file.unlink(missing_ok=True)
        if kind.folder:
            shutil.rmtree(unfinished.parent, ignore_errors=True)


def _write(kind: ExportFormat, packed: PackedNetwork, path: Path, masks: MaskForm, place: Path) -> None:
    try:
        kind.write(packed, path, masks)
    except (OSError, MachineError) as error:
        if is_full_disk(error):
            raise full_disk(place) from error
        raise InputError(f"output={str(place)!r} cannot be written ({getattr(error, 'strerror', error)}).") from error


def _place(settings: ExportSettings, kind: ExportFormat, source: Path) -> Path:
    """Where the file or the folder goes, by default beside the source."""
    place = Path(settings.output or source.with_suffix(kind.suffix)).expanduser()
    if not kind.folder and place.suffix != kind.suffix:
        raise InputError(f"output={str(settings.output)!r} must end in {kind.suffix} in the format {settings.format}.")
    if kind.folder and place.exists() and not place.is_dir():
        raise InputError(f"output={str(place)!r} is a file; the format {settings.format} needs a folder.")
    if not place.parent.is_dir():
        raise InputError(f"output={str(place)!r} lies in a folder that does not exist; create {str(place.parent)!r}.")
    taken = next((file for file in kind.files(place) if file.exists()), None)
    if taken is not None and not settings.overwrite:
        raise InputError(f"{str(taken)!r} exists; give another --output, or --overwrite to replace it.")
    return place


def _precisions(settings: ExportSettings, kind: ExportFormat) -> tuple[RealPrecision, RealPrecision]:
    """How classifier and real convolutions are stored."""
    for name in ("classifier_precision", "convolution_precision"):
        value = getattr(settings, name)
        if value is not None and value not in kind.precisions:
            raise InputError(
                f"{name}={value!r} goes with the format packed; {settings.format} has {' or '.join(kind.precisions)}."
            )
    if settings.masks != "planes" and not kind.has_forms:
        raise InputError(f"masks={settings.masks!r} goes with the format packed.")
    return settings.classifier_precision or kind.precisions[0], settings.convolution_precision or "float32"


def _batches(
    settings: ExportSettings, data: LightningDataModule | None, why: str, info: NetworkInfo
) -> tuple[Batches, str]:
    """The images to check on, and what they are in words."""
    count = settings.num_images
    if count < 1:
        raise InputError(f"num_images={count} must be at least 1.")
    if settings.images is not None:
        check_readable(info, "the network")
        paths = find_images([str(settings.images)])
        places = range(min(count, len(paths)))
        chosen = [paths[i * len(paths) // len(places)] for i in places]
        return _normalized(chosen, info), f"images of {settings.images}"
    if data is None:
        raise InputError(f"check has no images, since {why}; add --images=FOLDER, or the data's options.")
    name = type(data).__name__
    if isinstance(data, ImageDataModule):
        try:
            data.setup("test")
            whole = "all test" if len(data.predict_image_names) <= count else "test"
            return iter(data.test_batches(count)), f"{whole} images of {name}"
        except InputError:
            return iter(data.validation_batches(count)), f"validation images of {name}"
    return _first_batches(data, count), f"the first test images of {name}"


def _normalized(paths: list[Path], info: NetworkInfo) -> Batches:
    for pixels in read_batches(paths, info):
        # `check_readable` has seen that there are mean and std.
        yield info.normalization(pixels), None  # type: ignore[misc]


def _first_batches(data: LightningDataModule, count: int) -> Batches:
    left = count
    for batch in islice(data.test_dataloader(), count):
        images, labels = data.on_after_batch_transfer(batch, 0)
        yield images[:left], labels[:left]
        left -= len(images)
        if left <= 0:
            return


def _open_data(config: Namespace) -> tuple[LightningDataModule | None, str]:
    """The data module of a config, ready to give test or validation images; or None, and why there is none."""
    if config.get("data") is None:
        return None, "there is no data section; add --config RUN/config.yaml, or --data"
    try:
        data = build_data(config)
        data.prepare_data()
        try:
            data.setup("test")
        except InputError:
            data.setup("validate")
    except InputError as error:
        return None, str(error).rstrip(".")
    return data, ""
