"""Pixels of every mode of Pillow as 8-bit RGB."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bnfree.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

# Tags of TIFF 6.0.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


def rgb_pixels(image: Image) -> NDArray[np.uint8]:
    """The pixels of a loaded image, with 255 for the largest value that its file can hold.

    Pillow's own conversion cuts deeper pixels off at 255. Grey is repeated, palettes are looked up, CMYK, YCbCr, HSV
    and LAB are converted. Transparency is left out: the colours are those in the file, as with torchvision.

    Args:
        image: The image.

    Returns:
        Shape (H, W, 3).

    Raises:
        InputError: Floating-point or 32-bit pixels, of which no file says what is white.
    """
    if image.mode.startswith(("I", "F")):
        return np.repeat(_deep_grey(image)[..., None], 3, axis=2)
    # Pillow knows these conversions in two steps only, or warns of the other.
    if image.mode == "La":
        image = image.convert("LA")
    elif image.mode == "RGBa" or (image.mode == "P" and "transparency" in image.info):
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def _deep_grey(image: Image) -> NDArray[np.uint8]:
    """Pixels of more than 8 bits, scaled to 0..255 and rounded."""
    maximum = _maximum(image)
    if maximum is None:
        raise InputError(
            f"has pixels of mode {image.mode}, of which nobody states the white: save it with 8 or 16 bits a channel"
        )
    values = np.asarray(image).astype(np.int64)
    grey = ((values * 510 + maximum) // (2 * maximum)).clip(0, 255).astype(np.uint8)
    if image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # type: ignore[attr-defined]
        # Pillow sees to it with 8 bits only.
        grey = 255 - grey
    return grey


def _maximum(image: Image) -> int | None:
    """The value of white, where the file's format states it."""
    if image.format == "PPM" and image.mode == "I":
        # Pillow scales all of them.
        return 0xFFFF
    if not image.mode.startswith("I;16") or image.format == "FITS":
        # 16 bits of FITS are signed numbers of some unit.
        return None
    if image.format == "TIFF":
        bits = image.tag_v2.get(_BITS_PER_SAMPLE, (16,))  # type: ignore[attr-defined]
        return int((1 << bits[0]) - 1)
    return 0xFFFF
