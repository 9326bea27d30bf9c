"""Which files of a folder are images: what is hidden is left out, each folder is read once, links lead nowhere back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from bnfree.errors import InputError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
# Copies and thumbnails that archives, file servers and systems leave beside images; names with a dot are hidden anyway.
NOT_OURS = {
    "__MACOSX",
    "@eaDir",
    "@Recycle",
    "@Recently-Snapshot",
    "#recycle",
    "#snapshot",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
}

Identity = tuple[int, int]


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is none of the user's images or classes."""
    return name.startswith(".") or name in NOT_OURS


def is_image(name: str) -> bool:
    """Whether a file of this name is an image."""
    return not is_hidden(name) and name.lower().endswith(EXTENSIONS)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one; a link that leads to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


class FolderScan:
    """Walks folders, and knows over all its walks which it has read.

    A link is followed, but not to a folder that holds it, which would bring in everything beside it.
    """

    def __init__(self) -> None:
        self._read: dict[Identity, tuple[str, str]] = {}

    def images(self, folder: Path, group: str = "") -> Iterator[str]:
        """The image files of a folder and of those below it: files before folders, both in the order of names.

        A folder that several links lead to is read where it is met first.

        Args:
            folder: The folder; may itself be a link.
            group: What the images belong to, such as a class.

        Yields:
            Paths relative to `folder`, with forward slashes.

        Raises:
            InputError: A folder that cannot be read, a link to a folder that holds it, or a folder that has been read
                for another group.
        """
        holders = _holders(folder)
        _check_link(str(folder), holders)
        yield from self._walk(str(folder), "", group, holders)

    def _walk(self, folder: str, relative: str, group: str, holders: set[Identity]) -> Iterator[str]:
        identity = _identity(folder)
        first_path, first_group = self._read.setdefault(identity, (folder, group))
        if first_group != group:
            raise InputError(
                f"{folder} is the same folder as {first_path}, so its images would be of two classes: remove the link."
            )
        if first_path != folder:
            return
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(f"{folder} cannot be read ({error.strerror}): allow it or remove the folder.") from error
        folders = []
        for entry in entries:
            if is_folder(entry):
                folders += [] if is_hidden(entry.name) else [entry]
            elif is_image(entry.name) and (entry.is_symlink() or entry.is_file()):
                # A link to nothing is listed too, so that whoever reads it says its name.
                yield relative + entry.name
        for entry in folders:
            within = holders | {identity}
            if entry.is_symlink():
                _check_link(entry.path, within)
                within |= _holders(Path(entry.path))
            yield from self._walk(entry.path, f"{relative}{entry.name}/", group, within)


def _check_link(folder: str, holders: set[Identity]) -> None:
    if _identity(folder) in holders:
        raise InputError(f"{folder} is a link to {Path(folder).resolve()}, a folder that holds it: remove the link.")


def _identity(folder: str) -> Identity:
    status = Path(folder).stat()
    # Some file systems number nothing.
    return (status.st_dev, status.st_ino) if status.st_ino else (-1, hash(Path(folder).resolve()))


def _holders(folder: Path) -> set[Identity]:
    """The folders that hold this one, on the way by which it is named and on the one that links lead to."""
    ways = (Path(os.path.normpath(folder.absolute())), folder.resolve())
    return {_identity(str(holder)) for way in ways for holder in way.parents}
