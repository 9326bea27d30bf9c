"""Two commands must not write into one directory at the same time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bnfree.errors import InputError
from bnfree.lightning_modules.training.run_directory import is_child

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def only_one(directory: Path) -> Iterator[None]:
    """Holds a directory, which is created, for this command and the processes that it starts.

    The lock ends with the process, however it ends. On systems without `fcntl` there is none.

    Args:
        directory: the directory.

    Raises:
        InputError: another command holds it, or it cannot be written to.
    """
    if is_child():
        yield
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / ".lock").open("w")
    except OSError as error:
        raise InputError(
            f"run_dir={str(directory)!r} cannot be written to ({error.strerror}); give a writable directory."
        ) from error
    with file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(
                    f"run_dir={str(directory)!r} is in use by another command that has not ended; wait for it, or "
                    "give another directory."
                ) from error
            # A data loader's worker, forked from here, would hold on to the lock after this process has been killed.
            os.register_at_fork(after_in_child=file.close)
        yield
