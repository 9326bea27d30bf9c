"""What a machine can fail at in the midst of a run, said in one sentence with what would help."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from bnfree.errors import InputError, MachineError
from bnfree.files import full_disk, is_full_disk

NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|Cannot allocate memory")
DEAD_WORKER = re.compile(
    r"DataLoader worker \(pid[^)]*\)+[ \d,]* (?:is killed by signal: ([\w ]+)|exited unexpectedly)"
)


def explain_failure(error: BaseException, directory: Path | None, data: Any) -> InputError | MachineError | None:
    """One sentence for an exception that a run has ended with; None if it is a mistake in somebody's code.

    Args:
        error: the exception. What was raised while it was handled, such as by a logger that closes its file on a full
            disk, matters less than the first one.
        directory: the run directory.
        data: the data module.
    """
    chain = [error]
    while (earlier := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(earlier)
    for said in reversed(chain):
        if isinstance(said, MachineError):
            return said
    if isinstance(error, InputError):
        return error
    if isinstance(error, ValueError) and str(error).startswith("Expected more than 1 value per channel"):
        return InputError(
            f"norm='batch_norm' has no statistics of one value ({error}); take larger images or batches, or another "
            "norm."
        )
    if is_full_disk(error):
        files = [str(e.filename) for e in chain if isinstance(e, OSError) and e.filename]
        return full_disk(Path(files[0]) if files else (directory or Path()))
    worker = DEAD_WORKER.search(str(error)) if isinstance(error, RuntimeError) else None
    if worker is not None:
        how = f"killed ({worker[1].rstrip('. ')})" if worker[1] else "ended by the system"
        return MachineError(
            f"a process that reads images has been {how}, as happens without enough memory, or shared memory in "
            f"/dev/shm; lower --data.num_workers{_now(data, 'num_workers')}, then resume from the last checkpoint."
        )
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and NO_MEMORY.search(str(error))
    ):
        first = " ".join(str(error).split(". ")[0].split()) or "the machine has no more"
        return MachineError(
            f"out of memory ({first[:200]}); lower --data.batch_size{_now(data, 'batch_size')}, with "
            "--trainer.accumulate_grad_batches in its place, or the network's width or image size."
        )
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return MachineError(f"{str(error.filename)!r}: {error.strerror}; put that right, and go on.")
    return None


def _now(data: Any, name: str) -> str:
    value = getattr(data, name, None)
    return "" if value is None else f" (now {value})"
