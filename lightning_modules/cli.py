"""The `bnfree` command: the front, which answers without importing torch."""

from __future__ import annotations

import importlib
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from bnfree import __version__
from bnfree.errors import InputError, MachineError, NonFiniteError, Stopped, termination_is_an_exception
from bnfree.files import full_disk, is_full_disk
from bnfree.lightning_modules.command.subcommands import SUBCOMMANDS, Subcommand
from bnfree.names import did_you_mean
from bnfree.users_words import note, take_allowed

USAGE = """usage: bnfree SUBCOMMAND [options]

Train binary neural networks without batch normalisation.

subcommands:
{subcommands}

Examples:
  bnfree fit --config quickstart
  bnfree test --ckpt_path RUN/checkpoints/best.ckpt

Options of a subcommand: bnfree SUBCOMMAND --help
Every subcommand that reads files takes --allow_classes=PACKAGE: files may name classes of it.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the `bnfree` command.

    Args:
        arguments: what follows `bnfree` on the command line; None: `sys.argv`.

    Returns:
        The exit code: 0, or what a subcommand says; 2 after a mistake in what the user gave, 3 after a training that
        diverged and 1 after a failure of the machine such as a full disk, which are answered with one line on stderr;
        130 after Ctrl-C and 143 after SIGTERM, with the command that goes on. With `BNFREE_TRACEBACK=1` in the
        environment errors are raised instead.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        lines = (f"  {name:<10} {subcommand.summary}" for name, subcommand in SUBCOMMANDS.items())
        print(USAGE.format(subcommands="\n".join(lines)), end="")
        return 0
    if arguments[0] == "--version":
        print(f"bnfree {__version__}")
        return 0
    _quieten_threads()
    words = arguments
    try:
        with termination_is_an_exception():
            arguments = take_allowed(arguments)
            note(arguments)
            run = importlib.import_module(f"bnfree.lightning_modules.{_subcommand(arguments[0]).module}").run
            result = run(arguments)
    except (KeyboardInterrupt, Stopped) as end:
        return _stop(end, words)
    except BrokenPipeError:
        # Whoever reads the output has seen enough, such as `head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (InputError, MachineError, OSError) as error:
        if os.environ.get("BNFREE_TRACEBACK", "0") not in ("", "0"):
            raise
        if isinstance(error, OSError):
            _report(_of_system(error))
            return 1
        _report(error)
        if isinstance(error, NonFiniteError):
            return 3
        return 2 if isinstance(error, InputError) else 1
    return result if isinstance(result, int) else 0


def _subcommand(name: str) -> Subcommand:
    if name in SUBCOMMANDS:
        return SUBCOMMANDS[name]
    known = ", ".join(SUBCOMMANDS)
    if name.startswith("-"):
        raise InputError(f"{name!r} stands before the subcommand; give one of {known} first, then its options.")
    raise InputError(f"subcommand {name!r} is not known; {did_you_mean(name, SUBCOMMANDS) or f'choose from {known}.'}")


def _quieten_threads() -> None:
    """Leaves it to the main thread to say that the disk is full, which a thread that writes logs hands over to it."""
    earlier = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_value is None or not is_full_disk(arguments.exc_value):
            earlier(arguments)

    threading.excepthook = hook


# They find out by themselves how far they are.
GO_ON = ("recipe", "sweep", "lottery")


def _stop(end: BaseException, arguments: Sequence[str]) -> int:
    """Says how to go on after a signal; returns the exit code."""
    number = end.number if isinstance(end, Stopped) else signal.SIGINT
    if any(int(os.environ.get(name) or 0) > 0 for name in ("LOCAL_RANK", "RANK", "SLURM_PROCID")):
        return 128 + number
    line = str(end) if isinstance(end, Stopped) else "stopped by SIGINT"
    resume = end.resume if isinstance(end, Stopped) else None
    if arguments[0] in GO_ON:
        resume = ("bnfree", *arguments)
    print(f"bnfree: {line}" + (f"; to go on: {shlex.join(resume)}" if resume else ""), file=sys.stderr)
    return 128 + number


def _of_system(error: OSError) -> MachineError:
    files = [str(name) for name in (error.filename, error.filename2) if name is not None]
    if is_full_disk(error):
        return full_disk(Path(files[0]) if files else Path())
    return MachineError(f"{' and '.join(map(repr, files)) or 'the system says'}: {error.strerror or error}")


def _report(error: InputError | MachineError) -> None:
    if getattr(error, "is_told", False):
        return
    # Mostly every process of a distributed run meets the same mistake, and one answer is enough: the others speak only
    # if the first, which has started them, goes on living.
    if any(int(os.environ.get(name) or 0) > 0 for name in ("LOCAL_RANK", "RANK")):
        parent = os.getppid()
        for _ in range(50):
            time.sleep(0.1)
            if os.getppid() != parent:
                return
    # From a worker of a DataLoader, the message is a traceback that ends in the message.
    message = str(error).rpartition("InputError: ")[2]
    print(f"bnfree: error: {' '.join(message.split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
