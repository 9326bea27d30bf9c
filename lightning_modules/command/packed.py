"""`bnfree test` with a packed network: its manual, its options, and what it prints."""

from __future__ import annotations

from collections.abc import Sequence

from bnfree.errors import InputError
from bnfree.lightning_modules.command.parsing import ActionParser
from bnfree.lightning_modules.compat import hide
from bnfree.lightning_modules.deployment.packed_files import (
    accuracy_of_packed,
    names_packed_file,
    open_packed,
)
from bnfree.lightning_modules.training.class_names import OPTION
from bnfree.lightning_modules.training.config.parser import CommandParser, build_data
from bnfree.lightning_modules.training.config.sources import take_positionals, values_of
from bnfree.lightning_modules.training.messages import result_line, say
from bnfree.lightning_modules.training.network import add_network_arguments, parse

TEST = """Tests a packed network on the test images of a data module, which --data or the data section of a
--config names: bnfree test network.safetensors --config RUN/config.yaml"""


def names_packed_network(arguments: Sequence[str]) -> bool:
    """Whether a command line of `test` is about a packed network, and not about a checkpoint.

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
    add_engine(own)
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
        say(result_line(name, value))


def add_engine(parser: ActionParser) -> None:
    """Adds `--engine` and `--threads`, for packed networks."""
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
