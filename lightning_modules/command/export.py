"""`bnfree export`: a checkpoint becomes a file for inference."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Literal

from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn

from bnfree.datamodules.base import ImageDataModule
from bnfree.errors import InputError
from bnfree.lightning_modules.deployment.check import check
from bnfree.lightning_modules.deployment.contents import contents
from bnfree.lightning_modules.deployment.formats import FORMATS, Format
from bnfree.lightning_modules.deployment.image_paths import check_readable, find_images, read_batches
from bnfree.lightning_modules.deployment.network_info import network_info, open_data
from bnfree.lightning_modules.training.class_names import OPTION
from bnfree.lightning_modules.training.config.parser import CommandParser
from bnfree.lightning_modules.training.config.sources import options_of, take_positionals
from bnfree.lightning_modules.training.messages import say
from bnfree.lightning_modules.training.network import (
    add_network_arguments,
    build_network,
    image_shape,
    load_weights,
    parse,
)
from bnfree.packing import NetworkInfo, PackedNetwork, pack
from bnfree.packing.engines import EngineName, choose_engine
from bnfree.packing.file_layout import Masks
from bnfree.packing.real_weights import RealPrecision

FormatName = Literal["packed", "openvino", "torch_export", "onnx"]
FLAGS = ("--check", "--overwrite")
MISSING = "the checkpoint is not given; name it: bnfree export RUN/checkpoints/best.ckpt."
DESCRIPTION = """Turns a trained network with binary weights into one file: bits, one scale a filter, one threshold a
channel, and how its images are normalised, its class names and its accuracy. CKPT is a checkpoint, a ticket file, or a
run directory, of which it is the last checkpoint. The file is there as a whole or not at all, and never in place of
another unless --overwrite is given. With --check it is read back and compared with the trained network on real images;
where they differ without a reason, nothing is written, and the exit code is 1."""


def run(arguments: Sequence[str]) -> int:
    """Exports a network.

    Args:
        arguments: `export`, checkpoint and options.

    Returns:
        The exit code: 0, and 1 if the check has failed.

    Raises:
        InputError: a mistake in what the user gave.
    """
    config = parse(_parser(), [arguments[0], *_source_as_options(arguments[1:])])
    if config.ckpt_path is None:
        raise InputError(MISSING)
    name, kind, place = config.format, FORMATS[config.format], _place(config)
    kind.check_installed(name)
    precision, convolution_precision = _precisions(config)
    engine: EngineName = choose_engine(config.engine) if config.check else "torch"
    network, prefix = build_network(config)
    load_weights(network, prefix, config.ckpt_path, config.weights_only is not False)
    packed = pack(network, precision, convolution_precision, engine=engine)
    data, why = open_data(config)
    given_shape = image_shape(config, network) if config.image_shape is not None else None
    info = network_info(data, config, packed.num_classes, given_shape)
    if data is None:
        say(f"The data are not there ({why}), so the file says of them only what is known without.")
    batches = None
    if config.check:
        batches, images_are = _batches(config, data, why, info)
    packed = PackedNetwork(packed.layers, info, engine)
    unfinished = place.with_name(f".{place.stem}.unfinished{place.suffix}")
    try:
        try:
            kind.write(packed, unfinished, config.masks)
        except OSError as error:
            raise InputError(f"output={str(place)!r} cannot be written ({error.strerror}).") from error
        if batches is not None:
            say(f"Check on {images_are}:")
            exact = pack(network, "float32", "float32", info, engine)
            rounded = packed if (precision, convolution_precision) != ("float32", "float32") else None
            result = check(network.float(), kind.read(unfinished, engine), rounded, exact, batches)
            say("\n".join(f"  {line}" for line in result.lines()))
            if not result.passed:
                say(f"Check failed: {result.unexplained} images differ without a reason; nothing was written.")
                return 1
            say("Check passed.")
            if info.accuracy is None and config.images is None and images_are.startswith("all test images"):
                packed = PackedNetwork(packed.layers, replace(info, accuracy=result.accuracy), engine)
                kind.write(packed, unfinished, config.masks)
        for old, new in zip(kind.files(unfinished), kind.files(place), strict=True):
            old.replace(new)
    finally:
        for file in kind.files(unfinished):
            file.unlink(missing_ok=True)
    _report(name, kind, place, network, packed)
    return 0


def _source_as_options(arguments: Sequence[str]) -> list[str]:
    sources, rest = take_positionals(arguments, FLAGS)
    names = {argument.partition("=")[0] for argument in arguments}
    if not sources and not names & {"--ckpt_path", "--help", "-h"} and not any(n.endswith(".help") for n in names):
        raise InputError(MISSING)
    return [*options_of(sources[0]), *rest, *sources[1:]] if sources else list(arguments)


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="bnfree export", usage="bnfree export CKPT [options]", description=DESCRIPTION, allow_abbrev=False
    )
    parser.add_argument("--format", type=FormatName, default="packed", help="Kind of file, see docs/packing.md.")
    parser.add_argument(
        "--output", type=str | None, default=None, help="File to write; by default beside CKPT, under its name."
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace a file that is there.")
    parser.add_argument(
        "--classifier_precision",
        type=RealPrecision | None,
        default=None,
        help="How a packed file stores the classifier; by default float16.",
    )
    parser.add_argument(
        "--convolution_precision",
        type=RealPrecision | None,
        default=None,
        help="How a packed file stores stem and real shortcuts; by default float32: rounding turns activations over.",
    )
    parser.add_argument(
        "--masks",
        type=Masks,
        default="planes",
        help="How a packed file stores pruned binary weights: two bit planes, or five ternary digits a byte.",
    )
    parser.add_argument("--check", action="store_true", help="Compare the file with the trained network.")
    parser.add_argument(
        "--images",
        type=str | None,
        default=None,
        help="Folder of images to check on; by default the run's test images, or else its validation images.",
    )
    parser.add_argument("--num_images", type=int, default=1000, help="How many images to check on, at most.")
    parser.add_argument(
        "--engine", type=EngineName, default="auto", help="What the check runs a packed file with; see docs/packing.md."
    )
    add_network_arguments(parser, shown_too=["data", OPTION])
    return parser


def _place(config: Namespace) -> Path:
    kind = FORMATS[config.format]
    place = Path(config.output or Path(config.ckpt_path).with_suffix(kind.suffix)).expanduser()
    if place.suffix != kind.suffix:
        raise InputError(f"output={config.output!r} must end in {kind.suffix} in the format {config.format}.")
    if not place.parent.is_dir():
        raise InputError(f"output={str(place)!r} lies in a folder that does not exist; create {str(place.parent)!r}.")
    taken = next((file for file in kind.files(place) if file.exists()), None)
    if taken is not None and not config.overwrite:
        raise InputError(f"{str(taken)!r} exists; give another --output, or --overwrite to replace it.")
    return place


def _precisions(config: Namespace) -> tuple[RealPrecision, RealPrecision]:
    if config.format == "packed":
        return config.classifier_precision or "float16", config.convolution_precision or "float32"
    for option in ("classifier_precision", "convolution_precision"):
        if config[option] not in (None, "float32"):
            raise InputError(f"{option}={config[option]!r} goes with the format packed; {config.format} has float32.")
    if config.masks != "planes":
        raise InputError(f"masks={config.masks!r} goes with the format packed.")
    return "float32", "float32"


def _batches(
    config: Namespace, data: LightningDataModule | None, why: str, info: NetworkInfo
) -> tuple[Iterator[tuple[Tensor, Tensor | None]], str]:
    """The images to check on, and what they are in words."""
    count = config.num_images
    if count < 1:
        raise InputError(f"num_images={count} must be at least 1.")
    if config.images is not None:
        check_readable(info, "the network")
        paths = find_images([config.images])
        places = range(min(count, len(paths)))
        chosen = [paths[i * len(paths) // len(places)] for i in places]
        normalize = info.normalization
        assert normalize is not None
        return ((normalize(pixels), None) for pixels in read_batches(chosen, info)), f"images of {config.images}"
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


def _first_batches(data: LightningDataModule, count: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    left = count
    for batch in islice(data.test_dataloader(), count):
        images, labels = data.on_after_batch_transfer(batch, 0)
        yield images[:left], labels[:left]
        left -= len(images)
        if left <= 0:
            return


def _report(name: FormatName, kind: Format, place: Path, network: nn.Module, packed: PackedNetwork) -> None:
    files = kind.files(place)
    size = sum(file.stat().st_size for file in files)
    real = sum(value.numel() for value in network.parameters()) * 4
    more = f", {real / size:.1f} times as much" if real > size else ""
    say(f"Written to {' and '.join(map(str, files))}: {_size(size)}; {_size(real)} in float32{more}")
    lines = [*contents(packed, kind.weights), ("sha256", hashlib.sha256(place.read_bytes()).hexdigest())]
    say("\n".join(f"  {title:<15} {text}" for title, text in lines))


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
