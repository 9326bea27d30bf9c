"""Image files to pixels.

JPEG is decoded by torchcodec where it is installed (`pip install 'bnfree[fast]'`), straight into a tensor, and by
Pillow elsewhere; everything else, and what torchcodec refuses, by Pillow. Both decode JPEG with libjpeg-turbo and give
the same pixels, which the tests hold for the installed versions, so that a run does not depend on which is there;
torchcodec takes three quarters of the time (`benchmarks/image_decoding.py`). torchvision's decoder, deprecated since
its release 0.29 in favour of torchcodec's, is as fast as that and is not used.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnfree.errors import InputError
from bnfree.images.jpeg_header import read_jpeg_header
from bnfree.images.pixel_modes import rgb_pixels

if TYPE_CHECKING:
    from PIL.Image import Image

ORIENTATION = 0x0112
# Counts what changes the pixels of a file, for what has been stored of them: 2 scales 16 bits and knows orientations.
DECODING = 2


def decode_image(path: str | os.PathLike[str], exif_orientation: bool = True) -> Tensor:
    """An image file as RGB.

    16-bit pixels are scaled, not cut off; see `rgb_pixels`.

    Args:
        path: The file; its content decides on the format, not its name.
        exif_orientation: Turn and mirror the image as its EXIF or XMP data ask for, so that photographs of phones stand
            upright; false: as torchvision's `ImageFolder` does, which leaves them out.

    Returns:
        Shape (3, H, W), uint8, as a view of (H, W, 3).

    Raises:
        InputError: The file cannot be read or decoded, states more pixels than Pillow allows, or has pixels of a kind
            that nobody states the range of.

    Example:
        >>> from PIL import Image
        >>> Image.new("RGB", (40, 30), "red").save("red.png")
        >>> image = decode_image("red.png")
        >>> image.shape, image[:, 0, 0].tolist()
        (torch.Size([3, 30, 40]), [255, 0, 0])
    """
    image = _decode_jpeg(path, exif_orientation)
    return _decode_with_pillow(path, exif_orientation) if image is None else image


@cache
def _jpeg_decoder() -> Callable[[Tensor], Tensor] | None:
    """torchcodec's decoder, from bytes (N,) to pixels with the channels that the file has."""
    try:
        from torchcodec.decoders import decode_jpeg
    # Missing, or built for another torch, which ends in either of these.
    except (ImportError, OSError, RuntimeError):
        return None
    return partial(decode_jpeg, mode="UNCHANGED")


def _decode_jpeg(path: str | os.PathLike[str], exif_orientation: bool) -> Tensor | None:
    """The image if it is a JPEG file that torchcodec can decode."""
    decoder = _jpeg_decoder()
    try:
        data = np.fromfile(path, np.uint8)
        header = read_jpeg_header(data)
        if decoder is None or header is None or _is_too_large(header.height * header.width):
            return None
        image = decoder(_unturned(data) if header.has_metadata else torch.from_numpy(data))
    except (OSError, RuntimeError):
        return None
    # Four channels are CMYK, whose inverted variants Pillow knows.
    if image.shape[0] not in (1, 3):
        return None
    image = image.expand(3, -1, -1)
    return upright(image, _orientation_of_bytes(data)) if exif_orientation and header.has_metadata else image


def _unturned(data: NDArray[np.uint8]) -> Tensor:
    """A copy of a JPEG file whose EXIF data stand in segments of another kind, which decoders skip.

    torchcodec turns an image, asked or not, as its EXIF data say, but not as XMP data say; Pillow's reading is the one
    that counts here. No marker occurs in the coded pixels.
    """
    moved = re.sub(rb"\xff\xe1(..Exif\0\0)", b"\xff\xe3\\1", data.tobytes(), flags=re.DOTALL)
    return torch.frombuffer(bytearray(moved), dtype=torch.uint8)


def _is_too_large(pixels: int) -> bool:
    """Whether Pillow would refuse the image, and say so."""
    from PIL import Image

    return Image.MAX_IMAGE_PIXELS is not None and pixels > 2 * Image.MAX_IMAGE_PIXELS


def decode_jpeg_bytes(data: Tensor) -> Tensor:
    """A JPEG file in memory that is known to be whole, in colour and without metadata.

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


def _decode_with_pillow(path: str | os.PathLike[str], exif_orientation: bool = True) -> Tensor:
    from PIL import Image

    try:
        with Image.open(path) as file:
            return decode_picture(file, exif_orientation)
    except InputError as error:
        raise InputError(f"{path} {error}, or remove it.") from None
    # Damaged bytes make the decoders of thirty formats raise nearly anything.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "").rstrip(".") or type(error).__name__
        raise InputError(f"{path} cannot be decoded as an image ({reason}): replace or remove it.") from error


def decode_picture(image: Image, exif_orientation: bool = True) -> Tensor:
    """An image of Pillow as RGB, as `decode_image` gives that of a file.

    Args:
        image: The image; loaded if it is not yet.
        exif_orientation: As in `decode_image`.

    Returns:
        Shape (3, H, W), uint8, as a view of (H, W, 3).

    Raises:
        InputError: Pixels of a kind that nobody states the range of.
    """
    image.load()
    # Known only now: PNG has its EXIF data behind the pixels, and Pillow turns TIFF images itself.
    orientation = _orientation(image) if exif_orientation else 1
    return upright(torch.from_numpy(rgb_pixels(image)).permute(2, 0, 1), orientation)


def _orientation_of_bytes(data: NDArray[np.uint8]) -> int:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data.tobytes())) as file:
            return _orientation(file)
    # As below.
    except Exception:
        return 1


def _orientation(image: Image) -> int:
    """1 to 8, as EXIF counts them; 1, which leaves an image alone, where there is none or its data are damaged."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    # The pixels are whole, whatever the parser of damaged metadata raises.
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def upright(image: Tensor, orientation: int) -> Tensor:
    """Turn and mirror an image.

    Args:
        image: Shape (3, H, W), as a view of (H, W, 3).
        orientation: What EXIF calls orientation, 1 to 8: where the first row and the first column of the file belong.

    Returns:
        Shape (3, H, W), or (3, W, H) from 5 on, as a view with the channels last.
    """
    if orientation == 1:
        return image
    if orientation >= 5:
        image = image.transpose(1, 2)
    across, down = orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)
    image = image.flip([axis for axis, mirrored in ((2, across), (1, down)) if mirrored])
    return image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
