"""Pictures to the 8-bit images that a network takes: upright, resized, cropped, in grey or in colours."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, Union

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnfree.errors import InputError
from bnfree.images.decoding import decode_image, decode_picture
from bnfree.images.resizing import central_square, grey
from bnfree.packing.info import NetworkInfo

if TYPE_CHECKING:
    from PIL.Image import Image

Picture: TypeAlias = Union[str, "os.PathLike[str]", "Image", NDArray[np.uint8], Tensor]
"""A file, an image of Pillow, a numpy array (H, W) or (H, W, C) or a tensor (C, H, W), both of 8 bits."""


class Prediction(NamedTuple):
    """A class of an image, and how sure a network is of it."""

    label: str
    """Name of the class, or its number where classes have no names."""
    probability: float
    """From 0 to 1, over all classes together."""
    number: int
    """Number of the class."""


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


def prepare(pictures: Sequence[Picture], info: NetworkInfo) -> Tensor:
    """The pictures as a network takes them in evaluation.

    Args:
        pictures: files, images of Pillow, arrays or tensors.
        info: of a network that `check_readable` lets pass. Files and images of Pillow are turned as their EXIF data ask
            for, unless it says otherwise.

    Returns:
        8-bit images (N, C, H, W), not normalised yet.

    Raises:
        InputError: a file that cannot be decoded, or something that is no picture.
    """
    channels, size, _ = info.image_shape  # type: ignore[misc]
    turned = info.exif_orientation is not False
    images = torch.stack([central_square(_pixels(one, turned), size, info.resize or size) for one in pictures])
    return grey(images) if channels == 1 else images


def is_picture(given: Any) -> bool:
    """Whether it is one picture, and not a sequence of them."""
    return not isinstance(given, list | tuple)


def most_probable(logits: Tensor, top: int, names: Sequence[str] | None) -> list[list[Prediction]]:
    """For each image the classes that are most probable, the first one first.

    Args:
        logits: (N, num_classes).
        top: how many; all, where there are fewer.
        names: of the classes; None: their numbers.

    Raises:
        InputError: `top` below 1.
    """
    if top < 1:
        raise InputError(f"top={top} must be at least 1.")
    found = logits.softmax(1).topk(min(top, logits.shape[1]))
    return [
        [Prediction(str(k) if names is None else names[k], p, k) for p, k in zip(*pair, strict=True)]
        for pair in zip(found.values.tolist(), found.indices.tolist(), strict=True)
    ]


def _pixels(picture: Any, turned: bool) -> Tensor:
    """Shape (3, H, W), uint8."""
    if isinstance(picture, str | os.PathLike):
        path = Path(picture).expanduser()
        if not path.is_file():
            raise InputError(f"image {os.fspath(picture)!r} does not exist; give an image file.")
        return decode_image(path, turned)
    if isinstance(picture, Tensor):
        return _in_colours(picture if picture.ndim == 3 else picture[None], picture)
    if isinstance(picture, np.ndarray):
        values = torch.from_numpy(np.ascontiguousarray(picture))
        return _in_colours(values.permute(2, 0, 1) if values.ndim == 3 else values[None], values)
    if hasattr(picture, "convert") and hasattr(picture, "mode"):
        return decode_picture(picture, turned)
    raise InputError(
        f"a {type(picture).__name__} is no picture; give a file, an image of Pillow, or an array of 8 bits."
    )


def _in_colours(image: Tensor, given: Tensor) -> Tensor:
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3, 4) or 0 in image.shape:
        raise InputError(
            f"an array of shape {tuple(given.shape)} and {str(given.dtype).removeprefix('torch.')} is no picture; give "
            "8 bits: numpy (H, W) or (H, W, 3), torch (3, H, W)."
        )
    # Transparency is left out, as in files.
    return image[:3].expand(3, -1, -1).cpu()
