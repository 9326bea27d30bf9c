"""How a run ends early: by what a user can put right, by what the machine has failed at, by a signal."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class InputError(ValueError):
    """A mistake in what the user gave: an argument, a file, a config.

    The message is one sentence that names the argument, the value and what would be right. The `bnfree` command prints
    it without a traceback and leaves with exit code 2; in Python it is an ordinary `ValueError`.

    Args:
        message: the sentence. Where it quotes another error of several lines, they become one.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(" ".join(line.strip() for line in str(message).split("\n") if line.strip()))


class NonFiniteError(InputError):
    """Numbers that have become NaN or infinite while training; the message says where and what may help.

    The `bnfree` command leaves with exit code 3.
    """


class MachineError(RuntimeError):
    """What the machine has failed at: a full disk, too little memory, a process that is gone.

    The message is one sentence that says what, where, and what would help. The `bnfree` command prints it without a
    traceback and leaves with exit code 1.
    """


class Stopped(BaseException):
    """The end of a run that a signal has asked for: `Interrupted` or `Terminated`.

    The `bnfree` command prints the message and leaves with the exit code that a shell gives to the signal.

    Attributes:
        number: number of the signal; the exit code is 128 more.
        resume: words of the command that goes on from where the run is; None if there is none.
    """

    number: int = 0
    resume: tuple[str, ...] | None = None


class Interrupted(Stopped, KeyboardInterrupt):
    """A `KeyboardInterrupt` (Ctrl-C, SIGINT) that says where the run is."""

    number = int(signal.SIGINT)


class Terminated(Stopped, SystemExit):
    """A `SystemExit` after SIGTERM that says where the run is; a script that does not catch it leaves with code 143.

    Args:
        message: where the run is.
    """

    number = int(signal.SIGTERM)

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.code = 128 + self.number


def stopped(number: int, message: str, resume: tuple[str, ...] | None = None) -> Stopped:
    """The exception for a signal.

    Args:
        number: of the signal.
        message: where the run is.
        resume: words of the command that goes on.
    """
    error: Stopped = Interrupted(message) if number == signal.SIGINT else Terminated(message)
    error.resume = resume
    return error


@contextmanager
def termination_is_an_exception() -> Iterator[None]:
    """Raises `Terminated` on SIGTERM, so that files which are being written are removed; not in a thread."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, raise_terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def raise_terminated(number: int, frame: FrameType | None) -> None:
    """Handles SIGTERM.

    Raises:
        Terminated: in the process that has set it, and not in one forked from there.
    """
    if os.getpid() != _process:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    raise Terminated("stopped by SIGTERM")


_process = os.getpid()
