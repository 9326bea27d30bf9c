"""`bnfree test` and `predict` with a packed network: their manuals, their options, and what they print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bnfree.callbacks.prediction_writer import HEADER
from bnfree.callbacks.run_files import as_text, write_csv
from bnfree.errors import InputError
from bnfree.lightning_modules.command.parsing import ActionParser
from bnfree.lightning_modules.compat import hide
from bnfree.lightning_modules.deployment.packed_files import (
    accuracy_of_packed,
    names_packed_file,
    open_packed,
    predict_files,
)
from bnfree.lightning_modules.training.class_names import OPTION
from bnfree.lightning_modules.training.config.parser import CommandParser, build_data
from bnfree.lightning_modules.training.config.sources import take_positionals, values_of
from bnfree.lightning_modules.training.messages import say
from bnfree.lightning_modules.training.network import add_network_arguments, parse
from bnfree.text_tables import columns

TEST = """Tests a packed network on the test images of a data module, which --data or the data section of a
--config names: bnfree test network.safetensors --config RUN/config.yaml"""
PREDICT = """\
Prints class and probability of image files, with a packed network.

The file says how images are prepared and what the classes are called; no config, no data."""
PREDICT_EXAMPLES = """\
  bnfree predict network.safetensors cat.jpg photos/
  bnfree predict --model NAME cat.jpg            NAME: a network in pretrained/"""


def names_packed_network(arguments: Sequence[str]) -> bool:
    """Whether a command line of `test` or `predict` is about a packed network, and not about a checkpoint.

    Args:
        arguments: what follows the subcommand.
    """
    positionals, _ = take_positionals(arguments)
    return bool(positionals) or any(map(names_packed_file, values_of(arguments, "--model", "--ckpt_path")))


def run_test(arguments: Sequence[str]) -> None:
    """Prints loss and accuracy of a packed network.

    Args:
        arguments: `test` and its options.

    Raises:
        InputError: a mistake in what the user gave, or data that do not fit the network.
    """
    positionals, rest = take_positionals(arguments[1:])
    own = ActionParser("bnfree test", TEST, add_help=False)
    own.add_argument("--ckpt_path", "--model")
    _add_engine(own)
    given, options = own.parse_known_args(rest)
    names = [*([given.ckpt_path] if given.ckpt_path is not None else []), *positionals]
    if len(names) > 1:
        raise InputError(f"{names[1]!r} is one network too many; give one packed file.")
    config = parse(_test_parser(), [arguments[0], *options])
    network = open_packed(names[0], given.engine, given.threads)
    if config.get("data") is None:
        raise InputError(
            "data are not given; name them with --config RUN/config.yaml, or with "
            "--data=bnfree.datamodules.CIFAR10DataModule --data.data_dir=DIR."
        )
    for name, value in accuracy_of_packed(network, build_data(config), bool(config.get(OPTION))).items():
        say(f"{name}: {value:.4f}")


def run_predict(arguments: Sequence[str]) -> None:
    """Predicts the classes of image files.

    Args:
        arguments: `predict` and its options.

    Raises:
        InputError: a mistake in what the user gave.
    """
    given = _predict_parser().parse_intermixed_args(arguments[1:])
    names: list[str] = list(given.images)
    model = given.model or (names.pop(0) if names else None)
    if model is None or not names:
        raise InputError("images are not given; name a packed network and image files: bnfree predict FILE IMAGE...")
    if given.output is not None and not Path(given.output).name.endswith(".csv"):
        raise InputError(f"output={given.output!r} must be a CSV file, such as predictions.csv.")
    turned = None if given.exif_orientation is None else given.exif_orientation == "true"
    found = predict_files(open_packed(model, given.engine, given.threads), names, turned, f"model={model!r}")
    if given.output is None:
        rows = [(str(one.image), one.label, f"{one.probability:.4f}") for one in found]
        print("\n".join(columns(rows, left=2, width=None)))
        return
    try:
        rows = [(as_text(str(one.image)), as_text(one.label), f"{one.probability:.6f}") for one in found]
        write_csv(Path(given.output), HEADER, rows)
    except OSError as error:
        raise InputError(f"output={given.output!r} cannot be written ({error.strerror}).") from error
    print(f"Predictions written to {given.output}")


def _add_engine(parser: ActionParser) -> None:
    parser.add_argument(
        "--engine",
        default="auto",
        help="auto, numba, torch or openvino (default: numba if it is installed, else torch)",
    )
    parser.add_argument("--threads", type=int, default=None, help="processor threads (default: as torch chooses)")


def _test_parser() -> CommandParser:
    parser = CommandParser(
        prog="bnfree test", usage="bnfree test FILE|NAME [options]", description=TEST, allow_abbrev=False
    )
    parser.add_argument("--engine", type=str, default="auto", help="auto, numba, torch or openvino.")
    parser.add_argument("--threads", type=int | None, default=None, help="Processor threads.")
    add_network_arguments(parser, shown_too=["data", OPTION], required=False)
    # Accepted in a config, and of no use here.
    hide(parser, lambda name: name.partition(".")[0] in ("model", "image_shape"))
    return parser


def _predict_parser() -> ActionParser:
    usage = "bnfree predict [--model] FILE|NAME IMAGE... [options]"
    parser = ActionParser("bnfree predict", PREDICT, PREDICT_EXAMPLES, usage)
    parser.add_argument("--model", "--ckpt_path", help="packed file, or name of a pretrained network")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files, and folders of them")
    parser.add_argument(
        "--exif_orientation",
        choices=("true", "false"),
        help="turn images as their EXIF data ask for, or leave them (default: as in training)",
    )
    parser.add_argument("--output", help="CSV file to write (image,class,probability) in place of the lines")
    _add_engine(parser)
    return parser
