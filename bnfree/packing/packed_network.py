"""A packed network: callable like the one that it was made from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn

from bnfree.errors import InputError
from bnfree.packing.engines import (
    EngineName,
    NetworkFunction,
    choose_engine,
    engine_name,
)
from bnfree.packing.file_format import read, write
from bnfree.packing.file_layout import MaskForm
from bnfree.packing.info import NetworkInfo
from bnfree.packing.layers import PackedLayers
from bnfree.packing.preprocessing import Picture, Prediction, check_readable, is_picture, most_probable, prepare
from bnfree.packing.real_weights import RealPrecision

if TYPE_CHECKING:
    from PIL.Image import Image  # noqa: F401 - those who read annotations look here for what `Picture` names

# Pictures in memory at a time.
BATCH = 64


class PackedNetwork:
    """A binary network as constants and bits, from images to logits.

    Runs on the CPU, in float32, without gradients, for images of any size and batches of any length. Sums of signs are
    exact integers in every engine; real layers are rounded in the engine's own order, so that logits agree to about
    1e-6 unless an activation is that near to its threshold.

    Args:
        layers: constants and bits.
        info: what is known about images, classes and origin.
        engine: `numba` (bits, XNOR and popcount), `torch` (unpacked to -1 and +1: slow, and 32 times the memory),
            `openvino` (its binary convolution; compiled for each shape of images), the dotted path of an engine of
            your own or its class, or `auto`: numba if it is installed, else torch.

    Raises:
        InputError: an `info` that does not fit the layers, an unknown engine, or one whose package is not installed.
    """

    def __init__(self, layers: PackedLayers, info: NetworkInfo | None = None, engine: EngineName = "auto") -> None:
        self.layers, self.info = layers, NetworkInfo() if info is None else info
        self.info.check(layers.in_channels, layers.num_classes)
        self._engine = choose_engine(engine)
        self.engine = engine_name(self._engine)
        self._run: NetworkFunction | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.layers.num_classes

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return self.layers.in_channels

    def __call__(self, images: Tensor) -> Tensor:
        """Logits, float32 (N, num_classes).

        Args:
            images: (N, C, H, W) on the CPU: normalised ones in floating point, or the 8-bit ones that they are made of,
                uint8, if `info` has mean and std. These take the numba engine less time where the processor has
                VPDPBUSD (AVX-512 VNNI): it sums pixels with weights of 24 bits as integers, and so rounds less.

        Raises:
            InputError: images of another shape, dtype or device, or 8-bit ones without mean and std.
        """
        shape = tuple(images.shape)
        if len(shape) != 4 or shape[1] != self.in_channels or 0 in shape[2:]:
            raise InputError(f"images has shape {shape}; the network takes (N, {self.in_channels}, H, W).")
        of_pixels = images.dtype == torch.uint8
        if not (of_pixels or images.is_floating_point()) or images.device.type != "cpu":
            raise InputError(
                f"images is {images.dtype} on {images.device}; packed networks take normalised images in floating "
                "point, or 8-bit ones, on the CPU."
            )
        if of_pixels and self.info.normalization is None:
            raise InputError(
                "images is torch.uint8, and the network does not know its mean and std; normalise images to floating "
                "point."
            )
        if self._run is None:
            self._run = self._engine.prepare(self.layers, self.info.normalization)
        # Leaving autocast takes longer than asking for it.
        unmixed = torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else nullcontext()
        with torch.no_grad(), unmixed:
            return self._run(images if of_pixels else images.float())

    def preprocess(self, pictures: Picture | Sequence[Picture]) -> Tensor:
        """Pictures as the network takes them: upright, the shorter side resized, the centre cropped.

        Args:
            pictures: one or a list: files, images of Pillow, numpy arrays (H, W) or (H, W, 3) or tensors (3, H, W) of
                8 bits.

        Returns:
            8-bit images (N, C, H, W), N = 1 for one.

        Raises:
            InputError: a network whose `info` does not say its mean, std and image_shape, or a picture that cannot be
                read.
        """
        check_readable(self.info, "the network")
        given: list[Picture] = [pictures] if is_picture(pictures) else list(pictures)  # type: ignore[arg-type, list-item]
        return prepare(given, self.info)

    @overload
    def predict(self, pictures: list[Picture], top: int = 5) -> list[list[Prediction]]: ...
    @overload
    def predict(self, pictures: Picture, top: int = 5) -> list[Prediction]: ...
    def predict(self, pictures: Any, top: int = 5) -> list[Prediction] | list[list[Prediction]]:
        """The classes that are most probable, the first one first.

        Args:
            pictures: one or a list, as in `preprocess`.
            top: how many classes; all, where there are fewer.

        Returns:
            Label, probability and number of each class; for a list of pictures a list for each.

        Raises:
            InputError: as in `preprocess`, or `top` below 1.

        Example:
            >>> from bnfree.packing import pretrained_path
            >>> network = load(pretrained_path("cifar10_reactnet18_w16"), engine="torch")
            >>> [guess.label for guess in network.predict(torch.zeros(3, 40, 50, dtype=torch.uint8), top=2)]
            ['cat', 'deer']
        """
        found: list[list[Prediction]] = []
        given = [pictures] if is_picture(pictures) else list(pictures)
        for start in range(0, len(given), BATCH):
            logits = self(self.preprocess(given[start : start + BATCH]))
            found += most_probable(logits, top, self.info.class_names)
        return found[0] if is_picture(pictures) else found

    def save(self, path: str | os.PathLike[str], masks: MaskForm = "planes") -> None:
        """Writes the network into one file, see `bnfree.packing.file_format`; `load` reads it.

        Args:
            path: file to write, customarily `*.safetensors`; replaced if it exists.
            masks: how pruned binary weights are stored: `planes`, one bit for the sign and one for survival, 2 bits a
                weight, as they are used; or `digits`, five ternary digits a byte, 1.6 bits a weight. The network is the
                same. Pruned weights of real layers are stored as zeros; binary layers without a mask have 1 bit a
                weight either way.

        Raises:
            InputError: unknown `masks`, a kernel above 7x7 or names of more than 4 MiB, which no file can have, or a
                place that cannot be written to.
        """
        write(self.layers, self.info, path, masks)

    def __repr__(self) -> str:
        return (
            f"PackedNetwork({self.layers.architecture}, {len(self.layers.units)} units, "
            f"in_channels={self.in_channels}, num_classes={self.num_classes}, engine={self.engine})"
        )


def pack(
    model: nn.Module,
    classifier_precision: RealPrecision = "float16",
    convolution_precision: RealPrecision = "float32",
    info: NetworkInfo | None = None,
    engine: EngineName = "auto",
) -> PackedNetwork:
    """Turns a trained network into constants and bits.

    Args:
        model: a network with binary weights (step 2) such as `ReActNet18` or `ReActNetA`, with any `norm` and stem,
            dense or pruned; it is not changed. Batch norm is folded as in evaluation mode.
        classifier_precision: `float32`, `float16` or `int8` for the weights of the classifier, where rounding moves
            logits a little.
        convolution_precision: the same for the stem and real 1x1 shortcuts, where rounding moves activations across
            their thresholds, like a small change of the image, and some images to another class.
        info: what is known about images, classes and origin.
        engine: see `PackedNetwork`.

    Raises:
        InputError: another kind of network, one after step 1, values that are not finite, or an `info` that does not
            fit.

    Example:
        >>> from bnfree.backbones import ReActNet18
        >>> network = ReActNet18(num_classes=10, width=8)
        >>> images = torch.randn(2, 3, 32, 32)
        >>> packed = pack(network, classifier_precision="float32", engine="torch")
        >>> torch.allclose(packed(images), network(images), atol=1e-4)
        True
    """
    # Its networks take their time to import, which no file needs.
    from bnfree.packing.folding import fold

    return PackedNetwork(fold(model, classifier_precision, convolution_precision), info, engine)


def load(path: str | os.PathLike[str], engine: EngineName = "auto") -> PackedNetwork:
    """Reads a packed network; nothing in the file is run.

    Args:
        path: file that `PackedNetwork.save` has written.
        engine: see `PackedNetwork`.

    Raises:
        InputError: no such file, or one that is damaged, of another kind or of another version; an unknown engine, or
            one whose package is not installed.

    Example:
        >>> from bnfree.backbones import ReActNet18
        >>> pack(ReActNet18(num_classes=10, width=8)).save("network.safetensors")
        >>> load("network.safetensors", engine="torch")(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    return PackedNetwork(*read(path), engine)
