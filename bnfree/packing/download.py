"""Files that are downloaded once, checked by their SHA-256, and kept in the user's cache."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import IO

from bnfree.errors import InputError
from bnfree.files import full_disk, is_full_disk
from bnfree.packing.registry import Entry, user_folder

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".safetensors"
# Seconds without a byte.
PATIENCE = 30.0
_PIECE = 1 << 20


def cache_folder() -> Path:
    """Where downloaded networks are kept: `$XDG_CACHE_HOME/bnfree/networks`, by default below `~/.cache`."""
    return user_folder("XDG_CACHE_HOME", ".cache") / "networks"


def fetch(entry: Entry) -> Path:
    """The file of an entry with a URL, downloaded unless it is in the cache.

    What is in the cache has the checksum of the entry. A download that breaks off goes on where it stopped when it is
    asked for again, by any process; no more is taken than the entry's size. Nothing in the file is run or looked at.

    Args:
        entry: what to fetch.

    Raises:
        InputError: it cannot be downloaded, or what comes is another file.
        MachineError: the disk is full.
    """
    place = cache_folder() / f"{entry.name}-{entry.sha256[:16]}{SUFFIX}"
    if _is_whole(place, entry):
        return place
    unfinished = place.with_name(f".{place.name}.unfinished")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("a+b") as file:
            # Two processes that ask for the same file wait for each other.
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
            if _is_whole(place, entry):
                return place
            _download(entry, file)
            if not _is_whole(unfinished, entry):
                unfinished.unlink(missing_ok=True)
                raise InputError(
                    f"model={entry.name!r}: {entry.url} is not the file that the registry means, whose SHA-256 is "
                    f"{entry.sha256}; nothing of it is kept."
                )
            unfinished.replace(place)
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        if getattr(error, "code", None) == 416:
            # What is there reaches beyond the server's file.
            unfinished.unlink(missing_ok=True)
        raise InputError(
            f"model={entry.name!r} cannot be downloaded from {entry.url} ({_reason(error)}); try again where there is "
            f"a connection, or put the file to {str(place)!r}."
        ) from error
    except OSError as error:
        if is_full_disk(error):
            raise full_disk(place, entry.size) from error
        raise InputError(f"model={entry.name!r} cannot be kept in {str(place.parent)!r} ({error.strerror}).") from error
    return place


def _download(entry: Entry, file: IO[bytes]) -> None:
    file.seek(0, 2)
    have = file.tell()
    if have >= entry.size:
        file.truncate(0)
        have = 0
    request = urllib.request.Request(str(entry.url), headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        if have and answer.status != 206:
            # The server sends it from the beginning.
            file.truncate(0)
            have = 0
        while have <= entry.size:
            # One byte more than there should be tells a longer file.
            piece = answer.read(min(_PIECE, entry.size + 1 - have))
            if not piece:
                break
            file.write(piece)
            have += len(piece)
    file.flush()
    if have < entry.size:
        raise ConnectionError(f"it ended after {have} of {entry.size} bytes")


def _is_whole(path: Path, entry: Entry) -> bool:
    if not path.is_file() or path.stat().st_size != entry.size:
        return False
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest() == entry.sha256


def _reason(error: BaseException) -> str:
    return str(getattr(error, "reason", "") or error) or type(error).__name__
