"""`bnfree predict` with a packed network: image files in, class and probability out."""

from __future__ import annotations

from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bnfree.callbacks.prediction_writer import HEADER
from bnfree.callbacks.run_files import as_text, write_csv
from bnfree.errors import InputError
from bnfree.lightning_modules.deployment.image_paths import check_readable, find_images, read_batches
from bnfree.lightning_modules.deployment.packed.model import OptionsParser, add_engine_options, load_model
from bnfree.packing import PackedNetwork

DESCRIPTION = """Prints class and probability of image files, with a packed network.

  bnfree predict network.safetensors cat.jpg photos/
  bnfree predict --model NAME cat.jpg            NAME: a network in pretrained/

The file says how images are prepared and what the classes are called; no config, no data."""


def run(arguments: Sequence[str]) -> None:
    """Predicts the classes of image files.

    Args:
        arguments: `predict` and its options.

    Raises:
        InputError: a mistake in what the user gave.
    """
    parser = _parser()
    given = parser.parse_intermixed_args(arguments[1:])
    names: list[str] = list(given.images)
    model = given.model or (names.pop(0) if names else None)
    if model is None or not names:
        raise InputError("images are not given; name a packed network and image files: bnfree predict FILE IMAGE...")
    network = load_model(model, given.engine, given.threads)
    check_readable(network.info, f"model={model!r}")
    paths = find_images(names)
    if given.output is not None and not Path(given.output).name.endswith(".csv"):
        raise InputError(f"output={given.output!r} must be a CSV file, such as predictions.csv.")
    turned = None if given.exif_orientation is None else given.exif_orientation == "true"
    rows = predict(network, paths, turned)
    if given.output is not None:
        try:
            texts = ((as_text(image), as_text(label), probability) for image, label, probability in rows)
            write_csv(Path(given.output), HEADER, texts)
        except OSError as error:
            raise InputError(f"output={given.output!r} cannot be written ({error.strerror}).") from error
        print(f"Predictions written to {given.output}")
        return
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for image, label, probability in rows:
        print(f"{image:<{widths[0]}}  {label:<{widths[1]}}  {float(probability):.4f}")


def predict(
    network: PackedNetwork, paths: Sequence[Path], exif_orientation: bool | None = None
) -> list[tuple[str, str, str]]:
    """Path, class and probability of each image, as text.

    Args:
        network: the network, whose `info` says how images are prepared.
        paths: image files.
        exif_orientation: turn images as their EXIF data ask for; None: as `info` says.

    Raises:
        InputError: a file that cannot be decoded.
    """
    info = network.info if exif_orientation is None else replace(network.info, exif_orientation=exif_orientation)
    classes = info.class_names
    rows: list[tuple[str, str, str]] = []
    for images in read_batches(paths, info):
        for probability, label in zip(*(v.tolist() for v in network(images).softmax(1).max(1)), strict=True):
            name = str(label) if classes is None else classes[label]
            rows.append((str(paths[len(rows)]), name, f"{probability:.6f}"))
    return rows


def _parser() -> OptionsParser:
    parser = OptionsParser(
        "bnfree predict",
        usage="bnfree predict [--model] FILE|NAME IMAGE... [options]",
        description=DESCRIPTION,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", "--ckpt_path", help="packed file, or name of a pretrained network")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files, and folders of them")
    parser.add_argument(
        "--exif_orientation",
        choices=("true", "false"),
        help="turn images as their EXIF data ask for, or leave them (default: as in training)",
    )
    parser.add_argument("--output", help="CSV file to write (image,class,probability) in place of the lines")
    add_engine_options(parser)
    return parser
