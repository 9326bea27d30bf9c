"""The command line of subcommands that look at a config, a run directory or a checkpoint, and train nothing."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from jsonargparse import Namespace

from bnfree.errors import InputError
from bnfree.lightning_modules.training.config.arguments import complete_arguments
from bnfree.lightning_modules.training.config.explanations import explain
from bnfree.lightning_modules.training.config.parser import CommandParser, ParseFailure
from bnfree.lightning_modules.training.quiet import quieten
from bnfree.lightning_modules.training.run_directory import CHECKPOINTS, CONFIG, latest_config

SOURCE = "a YAML config, a run directory or a checkpoint"
FLAGS = ("--help", "-h", "--print_config")


def parse(parser: CommandParser, arguments: Sequence[str]) -> Namespace:
    """Parses a subcommand's options, of which `--ckpt_path` alone leads to a config.

    Args:
        parser: the subcommand's parser.
        arguments: subcommand and options.

    Raises:
        InputError: a mistake in what the user gave.
    """
    quieten(arguments[0])
    # A console script does not find the modules of the directory it is called from, where the user's own classes are.
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    arguments = complete_arguments(arguments)
    try:
        return parser.parse_args(arguments[1:])
    except ParseFailure as failure:
        raise InputError(explain(failure.message, arguments, {arguments[0]: parser})) from None


def take_positionals(arguments: Sequence[str], flags: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """Splits a command line into values that belong to no option, and the rest, each in its order.

    Args:
        arguments: what follows the subcommand.
        flags: options without a value, besides those that every subcommand has.
    """
    positionals: list[str] = []
    rest: list[str] = []
    for i, argument in enumerate(arguments):
        previous = arguments[i - 1] if i else ""
        takes_value = previous.startswith("-") and "=" not in previous and previous not in (*FLAGS, *flags)
        (rest if argument.startswith("-") or takes_value else positionals).append(argument)
    return positionals, rest


def options_of(source: str) -> list[str]:
    """The options that a config, a run directory or a checkpoint stands for.

    Raises:
        InputError: it is none of them.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / CONFIG).is_file():
            raise InputError(f"{source!r} is a directory without {CONFIG}, not of a run; give {SOURCE}.")
        last = path / CHECKPOINTS / "last.ckpt"
        return ["--ckpt_path", str(last)] if last.is_file() else ["--config", str(latest_config(path))]
    if path.suffix in (".yaml", ".yml", ".json"):
        return ["--config", str(path)]
    if not path.exists() and not path.suffix:
        raise InputError(f"{source!r} does not exist; give {SOURCE}.")
    return ["--ckpt_path", str(path)]
