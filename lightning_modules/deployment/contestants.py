"""The forms of one network that are timed against each other."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bnfree import plugins
from bnfree.errors import InputError
from bnfree.packing import PackedNetwork
from bnfree.packing.engines import Engine, NetworkFunction, is_available
from bnfree.packing.layers import PackedLayers, PackedUnit
from bnfree.packing.unpacked_network import UnpackedNetwork, UnpackedUnit

BASELINE = "eager"
FORMS = {
    "numba": "packed, numba",
    "openvino": "packed, OpenVINO",
    "torch": "packed, torch",
    "eager": "float32, eager",
    "compile": "float32, torch.compile",
    "int8": "int8, oneDNN",
}
NO_ENGINES = ("eager", "compile", "int8")


def contestants(
    packed: PackedNetwork, names: Sequence[str], images: Tensor
) -> tuple[dict[str, Callable[[], Tensor]], list[str]]:
    """The forms that run here, warmed up, and a sentence for each that does not or that gives other classes.

    Args:
        packed: the network.
        names: keys of `FORMS`, or names and dotted paths of engines.
        images: (N, C, H, W), as they will be timed. 8-bit ones are normalised beforehand for all but `numba`.

    Returns:
        By key, what computes the logits of the images; and the sentences.

    Raises:
        InputError: an unknown name.
    """
    unknown = [name for name in names if name not in (*FORMS, *plugins.names("engine")) and "." not in name]
    if unknown:
        raise InputError(f"engines={unknown[0]!r} is not known; choose from {', '.join(FORMS)}.")
    found: dict[str, Callable[[], Tensor]] = {}
    notes = []
    normalization = packed.info.normalization
    normalized = images if normalization is None or images.is_floating_point() else normalization(images)
    expected = PackedNetwork(packed.layers, engine="torch")(normalized)
    for name in names:
        missing = _missing(name)
        if missing is not None:
            notes.append(f"{title_of(name)}: left out, {missing}.")
            continue
        try:
            run = partial(_build(packed, name), images if name == "numba" else normalized)
            logits = run()
        except InputError:
            raise
        except Exception as error:
            # A compiler or an operator that this machine lacks ends in many exception types.
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            notes.append(f"{title_of(name)}: left out, it does not run here ({first[:100]}).")
            continue
        found[name] = run
        wrong = int((logits.argmax(1) != expected.argmax(1)).sum())
        if wrong:
            notes.append(f"{title_of(name)}: another class for {wrong} of {len(images)} images of noise.")
    return found, notes


def title_of(name: str) -> str:
    """What a form is called in tables."""
    return FORMS.get(name, f"packed, {name}")


def _missing(name: str) -> str | None:
    if name == "compile" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        return "since there is no C++ compiler"
    if name in NO_ENGINES or is_available(name):
        return None
    engine: type[Engine] = plugins.resolve("engine", name, "engines")
    return f"since {engine.package} is not installed" + (f": pip install 'bnfree[{engine.extra}]'" * bool(engine.extra))


def _build(packed: PackedNetwork, name: str) -> NetworkFunction:
    layers = packed.layers
    if name not in NO_ENGINES:
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


class Int8Network(UnpackedNetwork):
    """A packed network with its binary convolutions in 8 bits, by oneDNN inside torch: what is there without packing.

    The same numbers as `UnpackedNetwork`: sums of signs are exact in 8 bits too.

    Args:
        layers: constants and bits.

    Raises:
        AttributeError, RuntimeError: this torch has no such convolution.
    """

    def __init__(self, layers: PackedLayers) -> None:
        super().__init__(layers)
        self.units = nn.Sequential(*(Int8Unit(unit) for unit in layers.units))


class Int8Unit(UnpackedUnit):
    """A unit whose signs are 0 and 2 with the zero point 1, so that zero padding is exact."""

    def __init__(self, unit: PackedUnit) -> None:
        super().__init__(unit)
        out_channels, padding = unit.weight.shape[0], [(unit.weight.shape[-1] - 1) // 2] * 2
        self.geometry = ([unit.stride] * 2, padding, [1, 1], 1)
        self.ones, self.zeros = torch.ones(out_channels), torch.zeros(out_channels, dtype=torch.int64)
        self.packed_weight = torch.ops.onednn.qconv_prepack(
            unit.weight.values(), self.ones, 1.0, 1, *self.geometry, None
        )
        self.weight = torch.empty(0)

    def sums_of_signs(self, x: Tensor) -> Tensor:
        """The binary convolution, (N, O, H', W')."""
        signs = (x >= self.thresholds).to(torch.uint8).mul_(2).contiguous(memory_format=torch.channels_last)
        sums: Tensor = torch.ops.onednn.qconv2d_pointwise(
            signs, 1.0, 1, self.packed_weight, self.ones, self.zeros, None, *self.geometry, 1.0, 0, torch.float32,
            "none", [], "",
        )  # fmt: skip
        return sums
