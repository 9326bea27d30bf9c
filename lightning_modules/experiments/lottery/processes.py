"""Several processes that run the same command: what the first one writes, the others wait for."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from bnfree.errors import InputError
from bnfree.lightning_modules.training.run_directory import is_child

PATIENCE = 1800.0


def barrier() -> None:
    """Waits until all processes are here; returns at once before any of them has met the others."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def wait_for(path: Path) -> None:
    """Waits until the first process has written a file, or all processes are here.

    Processes that a cluster starts at the same time meet each other in their first fit only, which may be later.

    Args:
        path: the file.

    Raises:
        InputError: nothing for half an hour.
    """
    barrier()
    start = time.monotonic()
    while is_child() and not path.is_file():
        if time.monotonic() - start > PATIENCE:
            raise InputError(f"{str(path)!r} has not been written by the first process; is its directory shared?")
        time.sleep(0.1)
