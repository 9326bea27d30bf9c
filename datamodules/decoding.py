"""Image files to pixels."""

import io
import os
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from bnfree.errors import InputError

JPEG_START = [0xFF, 0xD8, 0xFF]


def decode_image(path: str | os.PathLike[str]) -> Tensor:
    """Decode an image file as RGB; an orientation in its EXIF data is not applied.

    JPEG is decoded by torchvision, straight into a tensor; everything else, and what torchvision refuses, by Pillow.
    Both use libjpeg-turbo and give the same pixels, torchvision in less time (`benchmarks/image_decoding.py`).

    Args:
        path: The file; its content decides on the format, not its name.

    Returns:
        Shape (3, H, W), uint8, as a view of (H, W, 3).

    Raises:
        InputError: The file cannot be read or decoded.
    """
    image = _decode_jpeg(path)
    return _decode_with_pillow(path) if image is None else image


@cache
def _jpeg_decoder() -> Callable[[Tensor], Tensor] | None:
    try:
        from torchvision.io import decode_jpeg  # type: ignore[import-untyped]
    except ImportError:
        # Deprecated since torchvision 0.29: a release to come has no decoder, and Pillow does the work.
        return None
    return decode_jpeg


def _decode_jpeg(path: str | os.PathLike[str]) -> Tensor | None:
    """The image if it is a JPEG file that torchvision can decode."""
    decoder = _jpeg_decoder()
    try:
        data = np.fromfile(path, np.uint8)
        if decoder is None or data[:3].tolist() != JPEG_START:
            return None
        image = decoder(torch.from_numpy(data))
    except (OSError, RuntimeError):
        return None
    return _as_rgb(image)


def decode_jpeg_bytes(data: Tensor) -> Tensor:
    """Decode a JPEG file in memory that is known to be whole and in colour.

    Args:
        data: Its bytes, shape (N,), uint8.

    Returns:
        Shape (3, H, W), uint8, as a view of (H, W, 3).
    """
    decoder = _jpeg_decoder()
    if decoder is not None:
        return decoder(data)
    from PIL import Image

    return torch.from_numpy(np.array(Image.open(io.BytesIO(data.numpy().tobytes())))).permute(2, 0, 1)


def _as_rgb(image: Tensor) -> Tensor | None:
    # Four channels are CMYK, whose inverted variants Pillow knows.
    return image.expand(3, -1, -1) if image.shape[0] in (1, 3) else None


def _decode_with_pillow(path: str | os.PathLike[str]) -> Tensor:
    from PIL import Image

    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be decoded as an image ({error}): replace or remove it.") from error
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
