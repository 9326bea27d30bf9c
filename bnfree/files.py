"""Files that are there as a whole or not at all, and what is said when the disk is full."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bnfree.errors import MachineError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def whole_file(path: str | os.PathLike[str], size: int | None = None) -> Iterator[Path]:
    """A place to write a file to, which takes its name once all is written; its directory is created.

    A reader sees the old file or the new one. After an error, a full disk for instance, the old one stays and nothing
    else is left. The unfinished file always has the same name, `.<name>.unfinished` in the same directory, so that what
    a killed process has left is overwritten by the next one.

    Args:
        path: the file.
        size: bytes that it will have, about; for the message when the disk is full.

    Yields:
        Where to write, in the same directory (moving between file systems would be copying).

    Raises:
        MachineError: the disk is full.

    Example:
        >>> from tempfile import mkdtemp
        >>> place = Path(mkdtemp()) / "result.txt"
        >>> with whole_file(place) as unfinished:
        ...     _ = unfinished.write_text("done")
        >>> place.read_text()
        'done'
    """
    place = Path(path)
    unfinished = place.with_name(f".{place.name}.unfinished")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        unfinished.replace(place)
    except BaseException as error:
        written = unfinished.stat().st_size if unfinished.is_file() else 0
        unfinished.unlink(missing_ok=True)
        if is_full_disk(error) and not isinstance(error, MachineError):
            raise full_disk(place, max(size or 0, written)) from error
        raise


def is_full_disk(error: BaseException) -> bool:
    """Whether an error, or one that it comes from, says that there is no space left, or no more for this user."""
    seen: BaseException | None = error
    while seen is not None:
        # Libraries in Rust, such as safetensors, have the number in their text.
        number = re.search(r"(?:os error|Os \{ code:) (\d+)", str(seen))
        if (isinstance(seen, OSError) and seen.errno in FULL) or (number and int(number[1]) in FULL):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def full_disk(path: Path, size: int = 0) -> MachineError:
    """The error of a file that there is no space for.

    Args:
        path: the file, or the directory that it was to be in.
        size: bytes that it needs, at least.
    """
    folder = next((place for place in (path, *path.absolute().parents) if place.is_dir()), Path())
    free = shutil.disk_usage(folder).free
    needs = f", {_amount(size)} needed" if size else ""
    kept = f"; the earlier {path.name} is kept" if path.is_file() else ""
    return MachineError(
        f"{str(path)!r} cannot be written: the disk is full ({_amount(free)} free{needs}){kept}; free some space, and "
        "go on."
    )


def _amount(size: int) -> str:
    amount, units = float(size), ["bytes", "kB", "MB", "GB"]
    while amount >= 1000 and len(units) > 1:
        amount /= 1000
        units.pop(0)
    return f"{amount:.3g} {units[0]}"
