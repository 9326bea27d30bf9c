"""The ways to compute a packed network, which give the same numbers but for the rounding of real layers."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from bnfree.errors import InputError
from bnfree.packing.layers import PackedLayers, PackedUnit
from bnfree.packing.pixels import Normalization

EngineName = Literal["auto", "numba", "torch", "openvino"]
UnitEngine = Literal["numba", "torch"]
# Package that an engine needs, and the extra that installs it.
NEEDS = {"numba": "fast", "openvino": "openvino"}
NetworkFunction = Callable[[Tensor], Tensor]
"""From images (N, C, H, W), normalised float32 or as far as it says 8-bit, to logits (N, num_classes) or to a trunk."""
UnitFunction = Callable[[Tensor, Tensor], Tensor]
"""From the unit's input (N, I, H, W) and its shortcut (N, O, H', W') to its output, all float32."""

_slow_engine_mentioned = False


def choose_engine(name: EngineName) -> Literal["numba", "torch", "openvino"]:
    """The engine to use: of `auto`, numba where it is installed, and else torch, which is said once.

    Raises:
        InputError: an unknown engine, or one whose package is not installed.
    """
    global _slow_engine_mentioned
    if name not in ("auto", "torch", *NEEDS):
        raise InputError(f"engine={name!r} is not known; choose 'auto', 'numba', 'torch' or 'openvino'.")
    if name == "torch":
        return "torch"
    if name == "auto" and is_available("numba"):
        return "numba"
    if name != "auto":
        if not is_available(name):
            raise InputError(
                f"engine={name!r} needs {name}, which is not installed: pip install 'bnfree[{NEEDS[name]}]'."
            )
        return name
    if not _slow_engine_mentioned:
        _slow_engine_mentioned = True
        warnings.warn(
            "numba is not installed, so packed networks run on unpacked weights, at the speed of real ones; for the "
            "fast engine: pip install 'bnfree[fast]'.",
            stacklevel=4,
        )
    return "torch"


def is_available(engine: Literal["numba", "torch", "openvino"]) -> bool:
    """Whether the package that an engine needs is installed."""
    return engine == "torch" or importlib.util.find_spec(engine) is not None


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


def prepare_openvino(layers: PackedLayers) -> NetworkFunction:
    """What computes a whole network with OpenVINO."""
    from bnfree.packing.openvino_engine import OpenVINONetwork

    return OpenVINONetwork.of_layers(layers)
