"""Classes of image files, by a packed network or by the network of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jsonargparse import Namespace
from torch import Tensor

from bnfree.lightning_modules.deployment.image_batches import find_images, read_batches
from bnfree.lightning_modules.deployment.network_info import network_info
from bnfree.lightning_modules.training.network import build_network, image_shape, load_weights
from bnfree.packing import NetworkInfo, Prediction
from bnfree.packing.preprocessing import check_readable, most_probable


class ImagePrediction(NamedTuple):
    """What a network says about an image file."""

    image: Path
    """The file."""
    classes: list[Prediction]
    """The most probable classes, the first one first."""


class CheckpointNetwork:
    """The network of a checkpoint, callable on 8-bit images as a packed one is: step 1, step 2, pruned or a teacher.

    Args:
        config: what a parser with `add_network_arguments` has read, with `ckpt_path`. Its data need not be there.

    Raises:
        InputError: a checkpoint that cannot be read, or of another network.
    """

    def __init__(self, config: Namespace) -> None:
        network, prefix = build_network(config)
        load_weights(network, prefix, config.ckpt_path, config.weights_only is not False)
        self.network = network.float().eval()
        shape = image_shape(config, network) if config.image_shape is not None else None
        num_classes: Any = getattr(network, "num_classes", None)
        self.info: NetworkInfo = network_info(None, config, num_classes, shape)

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of 8-bit images (N, C, H, W)."""
        # `check_readable` has seen that there are mean and std.
        with torch.inference_mode():
            logits: Tensor = self.network(self.info.normalization(images))  # type: ignore[misc]
        return logits


def predict_files(
    run: Callable[[Tensor], Tensor],
    info: NetworkInfo,
    images: Sequence[str | Path],
    top: int = 1,
    exif_orientation: bool | None = None,
    given: str = "the network",
) -> list[ImagePrediction]:
    """Classes of image files, prepared as in the network's evaluation.

    Args:
        run: the network, from 8-bit images to logits.
        info: what is known about its images and classes.
        images: image files, folders of them, and patterns.
        top: how many classes.
        exif_orientation: turn images as their EXIF data ask for; None: as in training.
        given: what messages call the network.

    Raises:
        InputError: a network that does not say how, a path that does not exist, or a file that cannot be decoded.
    """
    check_readable(info, given)
    info = info if exif_orientation is None else replace(info, exif_orientation=exif_orientation)
    paths = find_images([str(image) for image in images])
    found: list[ImagePrediction] = []
    for batch in read_batches(paths, info):
        for classes in most_probable(run(batch), top, info.class_names):
            found.append(ImagePrediction(paths[len(found)], classes))
    return found
