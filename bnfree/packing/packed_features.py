"""The body of a network alone on bits: a feature map for each stage, for detection and segmentation."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnfree.errors import InputError
from bnfree.packing.engines import EngineName, Numba, Torch, UnitEngine, UnitFunction, choose_engine, prepare_unit
from bnfree.packing.file_format import read, write
from bnfree.packing.info import NetworkInfo
from bnfree.packing.layers import PackedClassifier, PackedLayers
from bnfree.packing.real_weights import RealPrecision, RealWeight
from bnfree.packing.shortcuts import Shortcut


class PackedFeatures:
    """From normalised images to the feature map of every stage, as a network with `features_only=True` gives them.

    A stage ends before the next unit of stride 2. Nothing here is trained.

    Args:
        layers: constants and bits; the classifier is not used.
        info: what is known about the images.
        engine: `numba`, `torch` or `auto`, see `PackedNetwork`.

    Raises:
        InputError: an engine that computes whole networks alone, or one that is not installed.
    """

    def __init__(self, layers: PackedLayers, info: NetworkInfo | None = None, engine: EngineName = "auto") -> None:
        self.layers, self.info = layers, NetworkInfo() if info is None else info
        chosen = choose_engine(engine)
        kinds: dict[type, UnitEngine] = {Numba: "numba", Torch: "torch"}
        if chosen not in kinds:
            raise InputError(f"engine={engine!r} computes whole networks; features take numba, torch or auto.")
        self.engine = kinds[chosen]
        self._stem_weight = layers.stem.weight.expand()
        self._units: list[tuple[UnitFunction, Shortcut]] = [
            (prepare_unit(unit, self.engine), Shortcut(unit)) for unit in layers.units
        ]

    @property
    def channels(self) -> list[int]:
        """Channels of each feature map."""
        return [self.layers.units[stop - 1].weight.shape[0] for stop in self._stops]

    @property
    def _stops(self) -> list[int]:
        """Index of the unit behind each stage."""
        units = self.layers.units
        return [*(index for index, unit in enumerate(units) if unit.stride == 2 and index > 0), len(units)]

    def __call__(self, images: Tensor) -> list[Tensor]:
        """The feature maps, float32 (N, O, H', W') each.

        Args:
            images: normalised, (N, C, H, W) in floating point on the CPU.

        Raises:
            InputError: images of another shape, dtype or device.
        """
        shape, channels = tuple(images.shape), self.layers.in_channels
        if len(shape) != 4 or shape[1] != channels or 0 in shape[2:]:
            raise InputError(f"images has shape {shape}; the network takes (N, {channels}, H, W).")
        if not images.is_floating_point() or images.device.type != "cpu":
            raise InputError(f"images is {images.dtype} on {images.device}; give floating point on the CPU.")
        stem, maps, stops = self.layers.stem, [], set(self._stops)
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            x = F.conv2d(
                images.float(), self._stem_weight, stem.bias, stem.stride, (self._stem_weight.shape[-1] - 1) // 2
            )  # fmt: skip
            x = F.max_pool2d(x, 3, 2, 1) if stem.pool else x
            for index, (unit, shortcut) in enumerate(self._units, 1):
                x = unit(x.contiguous(), shortcut(x))
                if index in stops:
                    maps.append(x)
        return maps

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a packed file, see `bnfree.packing.file_format`, which asks for a classifier: the one of `layers`.

        Args:
            path: file to write, customarily `*.safetensors`.

        Raises:
            InputError: a place that cannot be written to.
        """
        write(self.layers, self.info, path, "planes")


def pack_features(
    model: nn.Module,
    convolution_precision: RealPrecision = "float32",
    info: NetworkInfo | None = None,
    engine: EngineName = "auto",
) -> PackedFeatures:
    """The body of a trained network on bits.

    Args:
        model: as `bnfree.packing.pack` takes it, with `features_only=True` or with a classifier, which is left out; a
            file of the features has one class of zeros in its place.
        convolution_precision: how stem and real shortcuts are stored.
        info: what is known about the images.
        engine: see `PackedFeatures`.

    Raises:
        InputError: another kind of network, or one after step 1.

    Example:
        >>> from bnfree.backbones import ReActNet18
        >>> body = ReActNet18(width=8, features_only=True)
        >>> images = torch.randn(1, 3, 32, 32)
        >>> packed = pack_features(body, engine="torch")
        >>> all(torch.allclose(a, b, atol=1e-4) for a, b in zip(packed(images), body(images), strict=True))
        True
    """
    from bnfree.packing.folding import fold_body

    architecture, stem, units = fold_body(model, convolution_precision)
    nothing = RealWeight.round(torch.zeros(1, units[-1].weight.shape[0]), "float32")
    layers = PackedLayers(architecture, stem, units, PackedClassifier(nothing, torch.zeros(1)))
    return PackedFeatures(layers, info, engine)


def load_features(path: str | os.PathLike[str], engine: EngineName = "auto") -> PackedFeatures:
    """The body of any packed file, of a classifier or of features.

    Args:
        path: file that `PackedNetwork.save` or `PackedFeatures.save` has written.
        engine: see `PackedFeatures`.

    Raises:
        InputError: no such file, or one that is damaged, of another kind or of another version.
    """
    return PackedFeatures(*read(path), engine)
