"""`bnfree predict` on image files: its manual, its options, and what it prints."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace

from bnfree.callbacks.prediction_writer import HEADER
from bnfree.callbacks.run_files import as_text, write_csv
from bnfree.errors import InputError
from bnfree.lightning_modules.command.packed import add_engine
from bnfree.lightning_modules.command.parsing import ActionParser
from bnfree.lightning_modules.deployment.packed_files import names_packed_file, open_packed, use_threads
from bnfree.lightning_modules.deployment.predictions import CheckpointNetwork, ImagePrediction, predict_files
from bnfree.lightning_modules.training.config.parser import CommandParser
from bnfree.lightning_modules.training.config.sources import options_of, take_positionals, values_of
from bnfree.lightning_modules.training.network import add_network_arguments, parse
from bnfree.text_tables import columns

MANUAL = """\
Prints class and probability of image files, by a packed network or by that of any checkpoint.

Packed file and checkpoint say how images are prepared and what the classes are called; no config, no data."""
EXAMPLES = """\
  bnfree predict --ckpt_path RUN/checkpoints/best.ckpt cat.jpg photos/ --top 5
  bnfree predict network.safetensors 'photos/*.jpg' --json
  bnfree predict --model NAME cat.jpg            NAME: a network in pretrained/
Without images, a checkpoint is run on the test images of its data."""
FLAGS = ("--json",)


def names_images(arguments: Sequence[str]) -> bool:
    """Whether a command line of `predict` is about image files, and not about the test images of a checkpoint's data.

    Args:
        arguments: what follows the subcommand.
    """
    positionals, _ = take_positionals(arguments, FLAGS)
    return bool(positionals) or any(map(names_packed_file, values_of(arguments, "--model", "--ckpt_path")))


def refuse_options_of_images(arguments: Sequence[str]) -> None:
    """Refuses the options of image files where none are named.

    Args:
        arguments: what follows the subcommand.

    Raises:
        InputError: there is one.
    """
    given = {word.partition("=")[0] for word in arguments}
    for option in ("--top", "--json", "--output", "--exif_orientation", "--engine", "--threads"):
        if option in given:
            raise InputError(
                f"{option} goes with image files, and none are given; name them: bnfree predict --ckpt_path CKPT "
                f"IMAGE... {option}. Without images, predictions of the data's test images are written as CSV."
            )


def run_predict(arguments: Sequence[str]) -> None:
    """Predicts the classes of image files.

    Args:
        arguments: `predict` and its options.

    Raises:
        InputError: a mistake in what the user gave.
    """
    positionals, rest = take_positionals(arguments[1:], FLAGS)
    given, others = _parser().parse_known_args(rest)
    model = given.model or (positionals.pop(0) if positionals else None)
    if model is None or not positionals:
        raise InputError(
            "images are not given; name a packed network or a checkpoint, and image files: bnfree predict --ckpt_path "
            "CKPT IMAGE..."
        )
    if given.output is not None and not Path(given.output).name.endswith(".csv"):
        raise InputError(f"output={given.output!r} must be a CSV file, such as predictions.csv.")
    if given.output is not None and given.json:
        raise InputError(f"json does not go with output={given.output!r}, which is a CSV file; give one of them.")
    turned = None if given.exif_orientation is None else given.exif_orientation == "true"
    if _names_checkpoint(model):
        use_threads(given.threads)
        network = CheckpointNetwork(_description(model, others))
        found = predict_files(network, network.info, positionals, given.top, turned, f"ckpt_path={model!r}")
    else:
        # What the checkpoints' parser would have taken.
        _parser().parse_args(rest)
        packed = open_packed(model, given.engine, given.threads)
        found = predict_files(packed, packed.info, positionals, given.top, turned, f"model={model!r}")
    if given.output is None:
        print(_as_json(found) if given.json else _as_lines(found))
        return
    try:
        rows = [(as_text(str(f.image)), as_text(c.label), f"{c.probability:.6f}") for f in found for c in f.classes]
        write_csv(Path(given.output), HEADER, rows)
    except OSError as error:
        raise InputError(f"output={given.output!r} cannot be written ({error.strerror}).") from error
    print(f"Predictions written to {given.output}")


def _names_checkpoint(model: str) -> bool:
    """Whether it is a run, or a file, and no packed one; `best` and `last` are the checkpoints of a `--run_dir`."""
    if names_packed_file(model):
        return False
    path = Path(model).expanduser()
    return model in ("best", "last") or path.suffix in (".ckpt", ".pt") or path.is_dir() or zipfile.is_zipfile(path)


def _description(model: str, options: Sequence[str]) -> Namespace:
    source = ["--ckpt_path", model] if model in ("best", "last") else options_of(model)
    parser = CommandParser(prog="bnfree predict", allow_abbrev=False)
    add_network_arguments(parser, required=False)
    config = parse(parser, ["predict", *source, *options])
    if config.ckpt_path is None:
        raise InputError(f"model={model!r} has no checkpoint; give one of a run, or a packed file.")
    return config


def _as_lines(found: Sequence[ImagePrediction]) -> str:
    rows = [
        (str(one.image) if place == 0 else "", guess.label, f"{guess.probability:.4f}")
        for one in found
        for place, guess in enumerate(one.classes)
    ]
    return "\n".join(columns(rows, left=2, width=None))


def _as_json(found: Sequence[ImagePrediction]) -> str:
    return json.dumps(
        [
            {
                "image": str(one.image),
                "classes": [
                    {"class": guess.label, "number": guess.number, "probability": round(guess.probability, 6)}
                    for guess in one.classes
                ],
            }
            for one in found
        ],
        indent=2,
        ensure_ascii=False,
    )


def _parser() -> ActionParser:
    usage = "bnfree predict [--ckpt_path CKPT | --model FILE|NAME] IMAGE... [options]"
    parser = ActionParser("bnfree predict", MANUAL, EXAMPLES, usage)
    parser.add_argument(
        "--ckpt_path", "--model", dest="model", metavar="FILE|NAME",
        help="checkpoint, ticket, run, packed file, or name of a pretrained network",
    )  # fmt: skip
    parser.add_argument("--top", type=int, default=1, metavar="N", help="how many classes of each image (default: 1)")
    parser.add_argument("--json", action="store_true", help="print JSON in place of lines")
    parser.add_argument(
        "--exif_orientation",
        choices=("true", "false"),
        help="turn images as their EXIF data ask for, or leave them (default: as in training)",
    )
    parser.add_argument(
        "--output", help="CSV file to write (image,class,probability) in place of the lines; a row for each class"
    )
    add_engine(parser)
    return parser
