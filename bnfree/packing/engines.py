"""The ways to compute a packed network, which give the same numbers but for the rounding of real layers.

An engine is a subclass of `Engine`, found by its name or its dotted path.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from bnfree.errors import InputError
from bnfree.packing.layers import PackedLayers, PackedUnit
from bnfree.packing.pixels import Normalization
from bnfree.plugins import name_of, resolve

UnitEngine = Literal["numba", "torch"]
NetworkFunction = Callable[[Tensor], Tensor]
"""From images (N, C, H, W), normalised float32 or as far as it says 8-bit, to logits (N, num_classes) or to a trunk."""
UnitFunction = Callable[[Tensor, Tensor], Tensor]
"""From the unit's input (N, I, H, W) and its shortcut (N, O, H', W') to its output, all float32."""

_slow_engine_mentioned = False


class Engine:
    """A way to compute a packed network; one of your own has a `prepare`."""

    package: ClassVar[str | None] = None
    """What must be installed."""
    extra: ClassVar[str | None] = None
    """The extra of bnfree that installs it."""

    @classmethod
    def is_available(cls) -> bool:
        """Whether its package is installed."""
        return cls.package is None or importlib.util.find_spec(cls.package) is not None

    @staticmethod
    def prepare(layers: PackedLayers, normalization: Normalization | None) -> NetworkFunction:
        """The function from images to logits, float32 (N, num_classes).

        Args:
            layers: the network; `bnfree.packing.unpacked_network` makes a torch module of it.
            normalization: of 8-bit images, which the function must take, too, unless it is None; see
                `accepting_pixels`.
        """
        raise NotImplementedError


EngineName = str | type[Engine]
"""`auto`, a name, a dotted path or the class itself."""


class Torch(Engine):
    """Weights unpacked to -1 and +1: slow, and 32 times the memory."""

    @staticmethod
    def prepare(layers: PackedLayers, normalization: Normalization | None) -> NetworkFunction:
        """The function from images to logits."""
        return _with_classifier(prepare_trunk(layers, "torch", normalization), layers)


class Numba(Engine):
    """Bits, XNOR and popcount, compiled at first use."""

    package = "numba"
    extra = "fast"

    @staticmethod
    def prepare(layers: PackedLayers, normalization: Normalization | None) -> NetworkFunction:
        """The function from images to logits."""
        return _with_classifier(prepare_trunk(layers, "numba", normalization), layers)


class OpenVINO(Engine):
    """OpenVINO's binary convolution, compiled for each shape of images."""

    package = "openvino"
    extra = "openvino"

    @staticmethod
    def prepare(layers: PackedLayers, normalization: Normalization | None) -> NetworkFunction:
        """The function from images to logits."""
        from bnfree.packing.openvino_engine import OpenVINONetwork

        return accepting_pixels(OpenVINONetwork.of_layers(layers), normalization)


def choose_engine(engine: EngineName) -> type[Engine]:
    """The engine to use: of `auto`, numba where it is installed, and else torch, which is said once.

    Raises:
        InputError: an unknown engine, or one whose package is not installed.
    """
    global _slow_engine_mentioned
    if engine != "auto":
        return _get_engine(engine)
    if is_available("numba"):
        return Numba
    if not _slow_engine_mentioned:
        _slow_engine_mentioned = True
        warnings.warn(
            "numba is not installed, so packed networks run on unpacked weights, at the speed of real ones; for the "
            "fast engine: pip install 'bnfree[fast]'.",
            stacklevel=4,
        )
    return Torch


def _get_engine(engine: EngineName) -> type[Engine]:
    found: type[Engine] = resolve("engine", engine)
    if not (isinstance(found, type) and issubclass(found, Engine)):
        raise InputError(f"engine={engine!r} is no engine; give a subclass of bnfree.packing.engines.Engine.")
    if not found.is_available():
        remedy = f": pip install 'bnfree[{found.extra}]'." if found.extra else "."
        raise InputError(f"engine={engine_name(found)!r} needs {found.package}, which is not installed{remedy}")
    return found


def engine_name(engine: type[Engine]) -> str:
    """The name or the dotted path of an engine."""
    return name_of("engine", engine)


def is_available(engine: str) -> bool:
    """Whether the package that an engine needs is installed."""
    found: type[Engine] = resolve("engine", engine)
    return found.is_available()


def _with_classifier(trunk: NetworkFunction, layers: PackedLayers) -> NetworkFunction:
    weight, bias = layers.classifier.weight.expand(), layers.classifier.bias

    def run(images: Tensor) -> Tensor:
        return F.linear(trunk(images).mean((2, 3)), weight, bias)

    return run


def prepare_unit(unit: PackedUnit, engine: UnitEngine) -> UnitFunction:
    """What computes the unit, its weights in the engine's own layout."""
    if engine == "torch":
        from bnfree.packing.torch_engine import TorchUnit

        return TorchUnit(unit)
    from bnfree.packing.numba_engine import NumbaUnit

    return NumbaUnit(unit)


def prepare_trunk(
    layers: PackedLayers, engine: UnitEngine, normalization: Normalization | None = None
) -> NetworkFunction:
    """What computes a network up to its last unit, from images to (N, O, H', W').

    Args:
        layers: the network.
        engine: the engine.
        normalization: of 8-bit images, which it takes then, too.
    """
    if engine == "torch" or not layers.units:
        from bnfree.packing.torch_engine import TorchNetwork

        return accepting_pixels(TorchNetwork(layers), normalization)
    from bnfree.packing.numba_engine import NumbaNetwork

    return NumbaNetwork(layers, normalization)


def accepting_pixels(run: NetworkFunction, normalization: Normalization | None) -> NetworkFunction:
    """What takes 8-bit images too, by normalising them first."""
    if normalization is None:
        return run
    return lambda images: run(normalization(images) if images.dtype == torch.uint8 else images)
