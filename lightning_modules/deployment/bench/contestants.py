"""The forms of one network that are timed against each other."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bnfree.errors import InputError
from bnfree.lightning_modules.deployment.bench.int8_network import Int8Network
from bnfree.packing import PackedNetwork
from bnfree.packing.engines import is_available
from bnfree.packing.unpacked_network import UnpackedNetwork

NetworkFunction = Callable[[Tensor], Tensor]
BASELINE = "eager"
NAMES = {
    "numba": "packed, numba",
    "openvino": "packed, OpenVINO",
    "torch": "packed, torch",
    "eager": "float32, eager",
    "compile": "float32, torch.compile",
    "int8": "int8, oneDNN",
}
# What installs the packages that engines need.
EXTRAS = {"numba": "fast", "openvino": "openvino"}
# Largest difference of two logits, relative to the largest, that rounding makes in the absence of a turned activation.
TOLERANCE = 1e-3


def contestants(
    packed: PackedNetwork, names: Sequence[str], images: Tensor
) -> tuple[dict[str, Callable[[], Tensor]], list[str]]:
    """The forms that run here, warmed up, and a sentence for each that does not or that gives other classes.

    Args:
        packed: the network.
        names: keys of `NAMES`.
        images: (N, C, H, W), as they will be timed. 8-bit ones are normalised beforehand for all but `numba`.

    Returns:
        By key, what computes the logits of the images; and the sentences.

    Raises:
        InputError: an unknown name.
    """
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise InputError(f"engines={unknown[0]!r} is not known; choose from {', '.join(NAMES)}.")
    found: dict[str, Callable[[], Tensor]] = {}
    notes = []
    normalization = packed.info.normalization
    normalized = images if normalization is None or images.is_floating_point() else normalization(images)
    expected = PackedNetwork(packed.layers, engine="torch")(normalized)
    for name in names:
        missing = _missing(name)
        if missing is not None:
            notes.append(f"{NAMES[name]}: left out, {missing}.")
            continue
        try:
            run = partial(_build(packed, name), images if name == "numba" else normalized)
            logits = run()
        except InputError:
            raise
        except Exception as error:
            # A compiler or an operator that this machine lacks ends in many exception types.
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            notes.append(f"{NAMES[name]}: left out, it does not run here ({first[:100]}).")
            continue
        found[name] = run
        wrong = int((logits.argmax(1) != expected.argmax(1)).sum())
        if wrong:
            notes.append(f"{NAMES[name]}: another class for {wrong} of {len(images)} images of noise.")
    return found, notes


def _missing(name: str) -> str | None:
    if name in EXTRAS and not is_available(name):
        return f"since {name} is not installed: pip install 'bnfree[{EXTRAS[name]}]'"
    if name == "compile" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        return "since there is no C++ compiler"
    return None


def _build(packed: PackedNetwork, name: str) -> NetworkFunction:
    layers = packed.layers
    if name in ("numba", "openvino", "torch"):
        return PackedNetwork(layers, packed.info, name)
    module: nn.Module = Int8Network(layers) if name == "int8" else UnpackedNetwork(layers)
    module.eval()
    if name == "compile":
        import torch._inductor.config as inductor

        inductor.freezing = True
        function: Any = torch.compile(module, dynamic=False)
    else:
        function = module

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = function(images)
        return logits

    return run
