"""Folders of image files: one folder per class, and the reading of single images."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from bnfree.datamodules.augmentation import random_resized_crop_box
from bnfree.datamodules.folder_scan import EXTENSIONS, FolderScan, is_folder, is_hidden
from bnfree.errors import InputError
from bnfree.images.decoding import decode_image
from bnfree.images.resizing import central_square
from bnfree.images.resizing import resize as resize_image


def class_folders(folder: Path) -> list[str]:
    """Names of the class folders in `folder`, sorted; hidden ones are not classes, links to folders are.

    Raises:
        InputError: there is no class folder.
    """
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if is_folder(entry) and not is_hidden(entry.name))
    if not names:
        raise InputError(f"{folder} has no class folders: images must be in {folder}/<class>/.")
    return names


def list_images(root: Path, part: str, class_names: list[str]) -> tuple[list[str], Tensor]:
    """List the image files of a part, also those in folders below a class folder.

    Args:
        root: The data folder.
        part: Name of the part's folder, e.g. `train`; `.` for the data folder itself.
        class_names: The classes it must have.

    Returns:
        Paths relative to `root` with forward slashes, ordered by class and name, and labels (N,) int64.

    Raises:
        InputError: the part has other classes, a class has no image, or links lead in circles (`FolderScan`).
    """
    found = class_folders(root / part)
    if found != class_names:
        wrong = [*(f"no {name}/" for name in class_names if name not in found)]
        wrong += [f"a foreign {name}/" for name in found if name not in class_names]
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InputError(f"{root / part} has {', '.join(wrong[:3])}{more}: it must have the classes of {root}/train.")
    paths: list[str] = []
    labels: list[int] = []
    scan = FolderScan()
    for label, name in enumerate(class_names):
        folder = Path(part, name).as_posix()
        files = [f"{folder}/{file}" for file in scan.images(root / part / name, name)]
        if not files:
            raise InputError(f"{root / part / name} has no image ({', '.join(EXTENSIONS)}): add some or remove it.")
        paths += files
        labels += [label] * len(files)
    return paths, torch.tensor(labels, dtype=torch.int64)


def read_image(
    path: str | os.PathLike[str], size: int, resize: int, random: Random | None = None, exif_orientation: bool = True
) -> Tensor:
    """Read an image file as RGB and bring it to a square.

    Args:
        path: The file.
        size: Height and width of the result, in pixels.
        resize: Without `random`, the shorter side is resized to it before the central crop.
        random: Source of a random resized crop; None for the central crop.
        exif_orientation: As in `decode_image`.

    Returns:
        Shape (3, size, size), uint8.

    Raises:
        InputError: the file cannot be read or decoded.
    """
    return fit_image(decode_image(path, exif_orientation), size, resize, random)


def fit_image(
    image: Tensor, size: int, resize: int, random: Random | None = None, drawn_on: tuple[int, int] | None = None
) -> Tensor:
    """Bring an image to a square as `read_image` does.

    Args:
        image: Shape (3, H, W), uint8.
        size: As in `read_image`.
        resize: As in `read_image`.
        random: As in `read_image`.
        drawn_on: Height and width of the image that this is a smaller copy of: the crop is drawn as it would be there.

    Returns:
        Shape (3, size, size), uint8.
    """
    height, width = image.shape[1:]
    if random is not None:
        full_height, full_width = drawn_on or (height, width)
        left, top, right, bottom = random_resized_crop_box(full_height, full_width, random)
        left, top = round(left * width / full_width), round(top * height / full_height)
        right = max(left + 1, round(right * width / full_width))
        bottom = max(top + 1, round(bottom * height / full_height))
        return resize_image(image[:, top:bottom, left:right], size, size).contiguous()
    return central_square(image, size, resize)


def read_images(root: Path, paths: list[str], size: int, exif_orientation: bool = True) -> Tensor:
    """Read files into memory with a thread per core: the shorter side resized to `size`, the centre cropped.

    Returns:
        Shape (N, 3, size, size), uint8.

    Raises:
        InputError: a file cannot be read or decoded.
    """
    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)

    def fill(start: int) -> None:
        for place in range(start, min(start + chunk, len(paths))):
            images[place] = read_image(root / paths[place], size, size, exif_orientation=exif_orientation)

    # Chunks, because a task per image costs as much as decoding a small one.
    chunk = 64
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            list(pool.map(fill, range(0, len(paths), chunk)))
        except InputError:
            pool.shutdown(cancel_futures=True)
            raise
    return images
