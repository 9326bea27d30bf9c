"""What travels from a loader to the device, and how it becomes what a model sees."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnfree.datamodules.augmentation import crop_and_flip, normalize
from bnfree.datamodules.extra_augmentation import Draws, ExtraAugmentation


class RawBatch(NamedTuple):
    """A batch of 8-bit images with the draws of its augmentation, before both are applied on the device.

    Attributes:
        images: Shape (N, C, H, W), uint8.
        targets: Shape (N,), int64: labels, or in prediction the images' places in `predict_image_names`.
        offsets: Shape (N, 2), int64: offsets for `crop_and_flip`; None for no crop.
        flips: Shape (N,), bool: flips for `crop_and_flip`; None for no crop.
        color_shift: Shape (N, C), float32: added to the image scaled to [0, 1]; None for no shift.
        positions: Shape (N,), int64: the images' places in their part of the data set; an array, which no device wants.
        variant: Epoch whose augmentation the images have; None for none.
    """

    images: Tensor
    targets: Tensor
    offsets: Tensor | None = None
    flips: Tensor | None = None
    color_shift: Tensor | None = None
    positions: NDArray[np.int64] | None = None
    variant: int | None = None


def finish_batch(
    batch: RawBatch,
    padding: int,
    mean: Sequence[float],
    std: Sequence[float],
    extra: ExtraAugmentation | None = None,
    draws: Draws | None = None,
) -> tuple[Tensor, Tensor]:
    """Apply the batch's draws and normalise.

    Args:
        batch: The batch, on any device.
        padding: Padding of the crop, in pixels.
        mean: Mean per channel, in units of the image scaled to [0, 1].
        std: Standard deviation per channel, likewise.
        extra: Augmentation beyond the crop and the flip; only with `draws`.
        draws: What the draws of `extra` belong to.

    Returns:
        Images (N, C, H, W) float32 and targets (N,) int64; where `extra` mixes images the first half of them, and
        float32 (N / 2, classes).
    """
    images, flips = batch.images, batch.flips
    if draws is None:
        extra = None
    if batch.offsets is not None and flips is not None:
        if extra is not None and draws is not None and extra.flips == "alternating":
            flips = extra.flips_of(draws).to(images.device, non_blocking=True)
        reflect = extra is not None and extra.padding_mode == "reflect"
        images = crop_and_flip(images, batch.offsets, flips, padding, reflect)
    if extra is not None and draws is not None:
        images = extra.change_pixels(images, draws)
    images = normalize(images, mean, std)
    if batch.color_shift is not None:
        # Normalisation is affine, so the shift may follow it once divided by std.
        shift = batch.color_shift / torch.tensor(std).to(images.device, non_blocking=True)
        images += shift[:, :, None, None]
    if extra is not None and draws is not None:
        return extra.change_values(images, batch.targets, draws)
    return images, batch.targets
