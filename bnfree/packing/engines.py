"""The two ways to compute a packed residual unit, which give the same numbers."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Literal

from torch import Tensor

from bnfree.errors import InputError
from bnfree.packing.layers import PackedUnit

EngineName = Literal["auto", "numba", "torch"]
UnitFunction = Callable[[Tensor, Tensor], Tensor]
"""From the unit's input (N, I, H, W) and its shortcut (N, O, H', W') to its output, all float32 in the channels-last
format."""

_slow_engine_mentioned = False


def choose_engine(name: EngineName) -> Literal["numba", "torch"]:
    """The engine to use: of `auto`, numba where it is installed, and else torch, which is said once.

    Raises:
        InputError: an unknown engine, or numba where it is not installed.
    """
    global _slow_engine_mentioned
    if name not in ("auto", "numba", "torch"):
        raise InputError(f"engine={name!r} is not known; choose 'auto', 'numba' or 'torch'.")
    if name == "torch":
        return "torch"
    if importlib.util.find_spec("numba") is not None:
        return "numba"
    if name == "numba":
        raise InputError("engine='numba' needs numba, which is not installed: pip install 'bnfree[fast]'.")
    if not _slow_engine_mentioned:
        _slow_engine_mentioned = True
        warnings.warn(
            "numba is not installed, so packed networks run on unpacked weights, at the speed of real ones; for the "
            "fast engine: pip install 'bnfree[fast]'.",
            stacklevel=4,
        )
    return "torch"


def prepare_unit(unit: PackedUnit, engine: Literal["numba", "torch"]) -> UnitFunction:
    """What computes the unit, its weights in the engine's own layout."""
    if engine == "torch":
        from bnfree.packing.torch_engine import TorchUnit

        return TorchUnit(unit)
    from bnfree.packing.numba_engine import NumbaUnit

    return NumbaUnit(unit)
