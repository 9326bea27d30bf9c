"""Checks of what a user gave, shared by the data modules."""

import math
from pathlib import Path

from bnfree.errors import InputError


def check_int(name: str, value: object, minimum: int) -> int:
    """Return `value` if it is a whole number of at least `minimum`.

    Raises:
        InputError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise InputError(f"{name}={value!r} must be a whole number of at least {minimum}.")
    return value


def check_share(name: str, value: object) -> float:
    """Return `value` if it is a share, above 0 and at most 1.

    Raises:
        InputError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise InputError(f"{name}={value!r} must be a share: above 0 and at most 1.")
    return float(value)


def check_split(name: str, value: object) -> int | float:
    """Return `value` if it can be the size of a held-out part: a count, or a fraction in [0, 1).

    Raises:
        InputError: it can not.
    """
    if not isinstance(value, bool):
        if isinstance(value, int) and value >= 0:
            return value
        if isinstance(value, float) and 0.0 <= value < 1.0:
            return value
    raise InputError(f"{name}={value!r} must be a number of images (0, 1, 2, ...) or a fraction in [0, 1).")


def split_size(name: str, value: int | float, num_images: int) -> int:
    """Turn a checked split argument into a number of images, leaving at least one for training.

    Raises:
        InputError: the part would be everything, or a non-zero fraction would be rounded to no image.
    """
    size = value if isinstance(value, int) else math.floor(value * num_images + 0.5)
    if size >= num_images:
        raise InputError(f"{name}={value!r} leaves no training image: it must be below {num_images}.")
    if size == 0 and value > 0:
        raise InputError(f"{name}={value!r} of {num_images} images is none: give 0 or a larger part.")
    return size


def existing_folder(name: str, folder: str, content: str) -> str:
    """Return `folder` with `~` expanded if it is a folder.

    Args:
        name: The argument it came from.
        folder: Path of the folder.
        content: What the folder should hold, for the message.

    Raises:
        InputError: there is no such folder.
    """
    if not isinstance(folder, (str, Path)):
        raise InputError(f"{name}={folder!r} must be the path of a folder with {content}.")
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise InputError(f"{name}={str(folder)!r} is not a folder: it must be one with {content}.")
    return str(path)
