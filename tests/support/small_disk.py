"""A disk that is full."""

import resource
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def small_disk(size):
    """Files cannot become larger than `size` bytes: writing beyond fails as on a full disk, with the system's error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def unfinished(directory):
    return [path for path in Path(directory).rglob("*") if "unfinished" in path.name]
