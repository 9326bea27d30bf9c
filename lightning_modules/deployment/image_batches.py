"""Image files for a packed network, brought to the shape that its training images had."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from bnfree.datamodules.folder_scan import EXTENSIONS, FolderScan
from bnfree.errors import InputError
from bnfree.packing import NetworkInfo
from bnfree.packing.preprocessing import prepare

BATCH = 64


def find_images(given: Sequence[str]) -> list[Path]:
    """The image files among paths: files as they are, folders with everything below them, in the order of names.

    A pattern such as `photos/*.jpg` stands for what it matches, where the shell has left it alone.

    Raises:
        InputError: a path that does not exist, a pattern that matches nothing, a folder without images, or links in it
            that lead back.
    """
    found: list[Path] = []
    for entry, path in _matching(given):
        scan = FolderScan()
        if path.is_dir():
            inside = [path / name for name in scan.images(path)]
            if not inside:
                raise InputError(f"{entry!r} has no image in it ({', '.join(EXTENSIONS)}).")
            found += sorted(inside)
        elif path.is_file():
            found.append(path)
        else:
            raise InputError(f"image {entry!r} does not exist; give image files or folders.")
    return found


def _matching(given: Sequence[str]) -> Iterator[tuple[str, Path]]:
    for entry in given:
        path = Path(entry).expanduser()
        if path.exists() or not set(entry) & set("*?["):
            yield entry, path
            continue
        found = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        if not found:
            raise InputError(f"image {entry!r} matches no file; give image files or folders.")
        yield from ((str(one), one) for one in found)


def read_batches(paths: Sequence[Path], info: NetworkInfo) -> Iterator[Tensor]:
    """The images in batches of 64: the shorter side resized, the centre cropped, grey where the network wants it.

    Args:
        paths: image files.
        info: with image_shape; images are turned as their EXIF data ask for, unless it says otherwise.

    Yields:
        8-bit images (N, C, H, W), not normalised yet.

    Raises:
        InputError: a file that cannot be decoded.
    """
    for start in range(0, len(paths), BATCH):
        yield prepare(paths[start : start + BATCH], info)
