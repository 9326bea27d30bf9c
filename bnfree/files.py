"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A place to write a file to, which takes its name once all is written; its directory is created.

    A reader sees the old file or the new one. After an error, a full disk for instance, the old one stays and nothing
    else is left. The unfinished file always has the same name, `.<name>.unfinished` in the same directory, so that what
    a killed process has left is overwritten by the next one.

    Args:
        path: the file.

    Yields:
        Where to write, in the same directory (moving between file systems would be copying).

    Example:
        >>> from tempfile import mkdtemp
        >>> place = Path(mkdtemp()) / "result.txt"
        >>> with whole_file(place) as unfinished:
        ...     _ = unfinished.write_text("done")
        >>> place.read_text()
        'done'
    """
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = place.with_name(f".{place.name}.unfinished")
    try:
        yield unfinished
        unfinished.replace(place)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
