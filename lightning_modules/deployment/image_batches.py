"""Image files for a packed network, brought to the shape that its training images had."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from bnfree.datamodules.folder_scan import EXTENSIONS, FolderScan
from bnfree.datamodules.image_files import read_image
from bnfree.errors import InputError
from bnfree.packing import NetworkInfo

BATCH = 64
# Parts of red, green and blue in a grey image, in 1/65536, as Pillow has them (ITU-R 601-2).
LUMA = (19595, 38470, 7471)


def find_images(given: Sequence[str]) -> list[Path]:
    """The image files among paths: files as they are, folders with everything below them, in the order of names.

    Raises:
        InputError: a path that does not exist, a folder without images, or links in it that lead back.
    """
    found: list[Path] = []
    for entry in given:
        scan = FolderScan()
        path = Path(entry).expanduser()
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


def check_readable(info: NetworkInfo, network: str) -> None:
    """Refuses a network of which nobody knows how images become its input.

    Args:
        info: what its file says.
        network: what to call it in the message.

    Raises:
        InputError: mean, std or image_shape is missing, or it takes images that are no files' kind.
    """
    missing = [name for name in ("mean", "std", "image_shape") if getattr(info, name) is None]
    if missing:
        raise InputError(
            f"{network} does not say its {', '.join(missing)}, without which image files cannot be prepared for it; "
            "export it again where its data are, or call it from Python on tensors."
        )
    channels, height, width = info.image_shape  # type: ignore[misc]
    if channels not in (1, 3) or height != width:
        raise InputError(
            f"{network} takes images of {channels}x{height}x{width}; files are read for square ones with 1 or 3 "
            "channels only, so call it from Python on tensors."
        )


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
    channels, size, _ = info.image_shape  # type: ignore[misc]
    resize, turned = info.resize or size, info.exif_orientation is not False
    for start in range(0, len(paths), BATCH):
        files = paths[start : start + BATCH]
        images = torch.stack([read_image(path, size, resize, exif_orientation=turned) for path in files])
        if channels == 1:
            parts = torch.tensor(LUMA).view(1, 3, 1, 1)
            images = ((images.int() * parts).sum(1, keepdim=True) + (1 << 15) >> 16).to(torch.uint8)
        yield images
