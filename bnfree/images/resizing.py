"""Images of one size from images of any: the shorter side resized, the centre cropped; and grey from colours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Parts of red, green and blue in a grey image, in 1/65536, as Pillow has them (ITU-R 601-2).
LUMA = (19595, 38470, 7471)


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """An image (C, H, W) of 8 bits in another size, by Pillow's antialiased bilinear filter.

    Within one grey level of Pillow, and faster.
    """
    return F.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]


def resize_shorter_side(image: Tensor, shorter_side: int, enlarge: bool = True) -> Tensor:
    """An image (C, H, W) of 8 bits whose shorter side has so many pixels.

    Args:
        image: The image.
        shorter_side: Pixels.
        enlarge: Also where it has less; false: leave such images as they are.

    Returns:
        Shape (C, H', W'), uint8.
    """
    height, width = image.shape[1:]
    shorter = min(width, height)
    if shorter == shorter_side or (shorter < shorter_side and not enlarge):
        return image
    width, height = (max(shorter_side, int(side * shorter_side / shorter)) for side in (width, height))
    return resize(image, height, width)


def central_square(image: Tensor, size: int, shorter_side: int) -> Tensor:
    """The centre (C, size, size) of an image (C, H, W) of 8 bits whose shorter side is resized first."""
    image = resize_shorter_side(image, shorter_side)
    height, width = image.shape[1:]
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image[:, top : top + size, left : left + size].contiguous()


def grey(images: Tensor) -> Tensor:
    """Grey images (N, 1, H, W) of images (N, 3, H, W), both 8-bit, as Pillow has them."""
    parts = torch.tensor(LUMA).view(1, 3, 1, 1)
    return ((images.int() * parts).sum(1, keepdim=True) + (1 << 15) >> 16).to(torch.uint8)
