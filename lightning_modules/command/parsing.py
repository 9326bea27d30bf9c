"""The parser of subcommands and actions that have options of their own alone, and no config."""

from __future__ import annotations

import argparse
from typing import NoReturn

from bnfree.errors import InputError
from bnfree.names import did_you_mean

UNKNOWN = "unrecognized arguments: "
REQUIRED = "the following arguments are required: "


class ActionParser(argparse.ArgumentParser):
    """A parser that answers a mistake with one sentence.

    Args:
        prog: the command, such as `bnfree ticket info`.
        description: what it does.
        examples: commands, one a line, below the options in the help.
        usage: None: made of the options.
        missing: what is said without an argument that is required; None: which one it is.
        add_help: whether `--help` is an option.
    """

    def __init__(
        self,
        prog: str,
        description: str,
        examples: str = "",
        usage: str | None = None,
        missing: str | None = None,
        add_help: bool = True,
    ) -> None:
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            epilog=f"examples:\n{examples}" if examples else None,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=28, width=118),
            allow_abbrev=False,
            add_help=add_help,
        )
        self._missing = missing

    def error(self, message: str) -> NoReturn:
        """Raises InputError."""
        see = f"see {self.prog} --help."
        if message.startswith(UNKNOWN):
            word = message.removeprefix(UNKNOWN).split()[0]
            known = did_you_mean(word.partition("=")[0], self._option_string_actions)
            what = "option" if word.startswith("-") else "argument"
            raise InputError(f"{what} {word!r} is not expected here; {known or see}")
        if message.startswith(REQUIRED):
            raise InputError(self._missing or f"{message.removeprefix(REQUIRED)} must be given; {see}")
        raise InputError(f"{message}; {see}")


def add_output(parser: ActionParser, what: str = "the new ticket") -> None:
    """Adds `--output` and `--overwrite`."""
    parser.add_argument("--output", metavar="FILE", required=True, help=f"where {what} goes")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
