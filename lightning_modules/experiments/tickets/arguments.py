"""Options of the actions of `bnfree ticket`: how they are read, and the ones that several of them have."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import NoReturn

from bnfree.errors import InputError
from bnfree.names import did_you_mean


class Parser(argparse.ArgumentParser):
    """A parser of one action, which answers a mistake with one sentence.

    Args:
        action: name of the action.
        description: what it does.
        examples: commands, one a line.
    """

    def __init__(self, action: str, description: str, examples: str) -> None:
        super().__init__(
            prog=f"bnfree ticket {action}",
            description=description,
            epilog=f"examples:\n{examples}",
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=28, width=118),
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raises InputError."""
        see = f"see {self.prog} --help."
        if message.startswith("unrecognized arguments: "):
            option = message.removeprefix("unrecognized arguments: ").split()[0]
            known = did_you_mean(option.partition("=")[0], self._option_string_actions)
            what = "option" if option.startswith("-") else "argument"
            raise InputError(f"{what} {option!r} is not expected here; {known or see}")
        missing = "the following arguments are required: "
        if message.startswith(missing):
            raise InputError(f"{message.removeprefix(missing)} must be given; {see}")
        raise InputError(f"{message}; {see}")

    def add_output(self, what: str = "the new ticket") -> None:
        """Adds `--output` and `--overwrite`."""
        self.add_argument("--output", metavar="FILE", required=True, help=f"where {what} goes")
        self.add_argument("--overwrite", action="store_true", help="replace the file if it exists")

    def add_target(self) -> None:
        """Adds what a command needs that builds another network: `--to`, `--seed`, `--calibrate`."""
        self.add_argument(
            "--to",
            metavar="CONFIG",
            help="the network that the new ticket is for: a config of bnfree fit, a run directory, a checkpoint or "
            "another ticket; options such as --model.backbone.width=32 beat it",
        )
        self.add_argument("--seed", type=int, default=0, help="of whatever is drawn (default: 0)")
        self.add_argument(
            "--calibrate",
            action="store_true",
            help="measure the new network's betas on 256 training images of the data section, as a run from scratch "
            "does before its first step and a run that starts from a ticket does not",
        )


def check_output(output: str, overwrite: bool, *sources: str) -> Path:
    """Refuses a file that is there already, before any work is done.

    Args:
        output: value of `--output`.
        overwrite: whether an existing file may be replaced.
        sources: files that the command reads, which are never replaced.

    Raises:
        InputError: the file exists, is a directory, or its directory cannot be written to.
    """
    path = Path(output).expanduser()
    if path.is_dir():
        raise InputError(f"output={output!r} is a directory; give the name of a file.")
    if any(path.exists() and Path(source).exists() and path.samefile(source) for source in sources):
        raise InputError(f"output={output!r} is the file that is read; give another one.")
    if path.exists() and not overwrite:
        raise InputError(f"output={output!r} exists; give another file, or add --overwrite to replace it.")
    parent = next(directory for directory in path.absolute().parents if directory.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"output={output!r} cannot be written to; give a file in a writable directory.")
    return path
