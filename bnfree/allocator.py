"""Freed memory kept for reuse: what glibc's allocator costs training on a CPU, and the way around it.

glibc serves a block of 32 MiB or more from fresh pages of the kernel and gives them back when it is freed, and gives
back smaller ones when enough of them lie free at the end of the heap. A training step frees all that it has allocated,
so every step takes its large tensors anew: a page fault for each 4 KiB, which the kernel fills with zeros.

Source: mallopt(3); the same effect is reported for matrix products in Eigen's issue 3201.
"""

from __future__ import annotations

import ctypes
import importlib
from typing import Any

# Constants of glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Makes glibc keep the memory that is freed from now on, for the rest of the process.

    Blocks are no longer mapped one by one, and the heap is given back only beyond 2 GiB of free memory at its end. The
    process stays as large as it has once been; its peak may grow somewhat, since what lies free need not fit.

    Returns:
        Whether it is in force; False where the C library is not glibc (musl, macOS, Windows), where nothing is changed.
    """
    try:
        library: Any = ctypes.CDLL(None)
        mallopt = library.mallopt
        # Other C libraries may have a mallopt that does something else.
        _ = library.gnu_get_libc_version
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def page_faults() -> int | None:
    """Pages that this process has been given so far without reading from a disk; None where nobody counts (Windows)."""
    try:
        resource: Any = importlib.import_module("resource")
    except ImportError:
        return None
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
