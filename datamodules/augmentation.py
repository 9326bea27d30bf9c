"""Augmentation and normalisation of image batches as pure functions, on whatever device the batch is."""

import math
from collections.abc import Sequence
from functools import cache
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Principal components of the RGB values of ImageNet's training images scaled to [0, 1]: the square roots of the
# covariance's eigenvalues and, in columns, its eigenvectors. Source: fb.resnet.torch, datasets/imagenet.lua, after
# Krizhevsky et al., "ImageNet classification with deep convolutional neural networks", 2012, section 4.1.
PCA_EIGENVALUES = (0.2175, 0.0188, 0.0045)
PCA_EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


def crop_and_flip(images: Tensor, offsets: Tensor, flips: Tensor, padding: int, reflect: bool = False) -> Tensor:
    """Pad each image, crop it back to its size at its own offset, and mirror it left to right where asked.

    Args:
        images: Shape (N, C, H, W), any dtype.
        offsets: Shape (N, 2), int64 in 0..2 * padding: the crop's first row and column in the padded image.
        flips: Shape (N,), bool: mirror the crop.
        padding: Pixels added on each side.
        reflect: They mirror the image at its border, without repeating its last pixel; otherwise they are zero.

    Returns:
        Shape (N, C, H, W), the dtype of `images`.
    """
    if images.device.type == "cpu" and images.dtype == torch.uint8 and not reflect:
        return _crop_and_flip_by_slicing(images, offsets, flips, padding)
    n, channels, height, width = images.shape
    rows = offsets[:, :1] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(n, width)
    columns = torch.where(flips[:, None], width - 1 - columns, columns) + offsets[:, 1:]
    if reflect:
        rows, columns = _mirrored(rows - padding, height), _mirrored(columns - padding, width)
        padded, padding = images, 0
    else:
        padded = F.pad(images, (padding, padding, padding, padding))
    # One flat gather: a kernel launch for the whole batch.
    index = (rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]).view(n, 1, height * width)
    return padded.flatten(2).gather(2, index.expand(n, channels, -1)).view_as(images)


def _mirrored(places: Tensor, size: int) -> Tensor:
    """Places in 0..size - 1 for those beyond the border by less than `size`."""
    return (size - 1) - ((size - 1) - places.abs()).abs()


def _crop_and_flip_by_slicing(images: Tensor, offsets: Tensor, flips: Tensor, padding: int) -> Tensor:
    """The same on a CPU: what a crop shares with its image is copied row by row, and the gather's index not built.

    In numpy, whose slices cost a fifth of torch's; nothing is padded, the rest of the result is 0 from the start.
    """
    height, width = images.shape[2:]
    size = torch.tensor([height, width])
    moves = torch.minimum(torch.maximum(offsets - padding, -size), size)
    sources, targets = moves.clamp(min=0).tolist(), moves.neg().clamp(min=0).tolist()
    result = np.zeros(images.shape, np.uint8)
    # A mirrored crop is written from right to left.
    results = (result, result[..., ::-1])
    for i, (image, flip, (top, left), (to_top, to_left)) in enumerate(
        zip(images.numpy(), flips.tolist(), sources, targets, strict=True)
    ):
        part = image[:, top : height - to_top, left : width - to_left]
        results[flip][i, :, to_top : height - top, to_left : width - left] = part
    return torch.from_numpy(result)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Scale 8-bit images to [0, 1], subtract `mean` and divide by `std`.

    Args:
        images: Shape (N, C, H, W), uint8.
        mean: One value per channel, in units of the image scaled to [0, 1].
        std: As `mean`.

    Returns:
        Shape (N, C, H, W), float32.
    """
    scaled_mean, factor = _normalization(tuple(mean), tuple(std), images.device)
    return images.to(torch.float32).sub_(scaled_mean).mul_(factor)


@cache
def _normalization(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    # Kept, since building the constants takes a fifth of the time of a small batch, and on a GPU waits for it.
    scaled_mean = torch.tensor([255.0 * m for m in mean], device=device).view(1, -1, 1, 1)
    return scaled_mean, torch.tensor([1.0 / (255.0 * s) for s in std], device=device).view(1, -1, 1, 1)


def pca_lighting(alphas: Tensor) -> Tensor:
    """The colour shift of AlexNet's PCA lighting: eigenvectors @ (alpha * eigenvalues).

    The eigenvalues hold for images scaled to [0, 1]; added to 0..255 images unscaled, the shift would be lost in
    rounding, as it is in several public training scripts.

    Args:
        alphas: Shape (N, 3), float: one draw per component and image, of standard deviation 0.1 in the paper.

    Returns:
        Shape (N, 3), the dtype of `alphas`: what to add to R, G and B of an image scaled to [0, 1].
    """
    vectors = torch.tensor(PCA_EIGENVECTORS, dtype=alphas.dtype, device=alphas.device)
    values = torch.tensor(PCA_EIGENVALUES, dtype=alphas.dtype, device=alphas.device)
    return (alphas * values) @ vectors.T


def random_resized_crop_box(
    height: int,
    width: int,
    random: Random,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """Draw the Inception crop: a box of random area and aspect ratio.

    Ten attempts, then the largest central box within `ratio`, as `torchvision.transforms.RandomResizedCrop` does.

    Args:
        height: Height of the image, in pixels.
        width: Width of the image, in pixels.
        random: Source of the draws.
        scale: Smallest and largest part of the image's area.
        ratio: Smallest and largest width over height; drawn uniformly in the logarithm.

    Returns:
        The box as (left, top, right, bottom).
    """
    for _ in range(10):
        area = height * width * random.uniform(*scale)
        aspect = math.exp(random.uniform(math.log(ratio[0]), math.log(ratio[1])))
        box_width = round(math.sqrt(area * aspect))
        box_height = round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            left = random.randint(0, width - box_width)
            top = random.randint(0, height - box_height)
            return left, top, left + box_width, top + box_height
    box_width = min(width, max(1, round(height * ratio[1])))
    box_height = min(height, max(1, round(width / ratio[0])))
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return left, top, left + box_width, top + box_height
