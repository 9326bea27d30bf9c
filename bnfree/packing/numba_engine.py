"""Packed units on bits: 32 channels a word, XNOR and popcount, compiled by numba at first use."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numba
import torch
from torch import Tensor
from torch.nn import functional as F

from bnfree.packing.layers import PackedUnit
from bnfree.packing.numba_layout import UnitLayout, Workspace
from bnfree.packing.numba_run import run, run_threaded
from bnfree.packing.numba_unit import BLOCK
from bnfree.packing.shortcuts import Shortcut, channels_last

# Not every threading layer of numba bears being entered by two threads at once.
_lock = threading.Lock()
# Sizes of images for which the memory to work in is kept.
KEPT_SIZES = 4


class NumbaUnits:
    """Computes units one behind the other, on `torch.get_num_threads()` threads.

    Args:
        units: the units.
        projections: for each its projection, as a function from the averaged input (N, I, H', W') to the shortcut
            (N, O, H', W'), or None.
    """

    def __init__(self, units: Sequence[PackedUnit], projections: Sequence[Callable[[Tensor], Tensor] | None]) -> None:
        self.projections = projections
        self.out_channels = units[-1].weight.shape[0]
        self.layouts = [
            UnitLayout(unit, projection is not None, following)
            for unit, projection, following in zip(units, projections, [*units[1:], None], strict=True)
        ]
        self._workspaces: OrderedDict[tuple[int, ...], list[Workspace]] = OrderedDict()

    @classmethod
    def with_shortcuts(cls, units: Sequence[PackedUnit]) -> NumbaUnits:
        """The units of a network, with the projections that they have."""
        return cls(units, [None if unit.projection is None else Shortcut(unit).project for unit in units])

    def __call__(self, x: Tensor) -> Tensor:
        """The last unit's output (N, O, H', W') for the first one's input (N, I, H, W), which may be overwritten."""
        trunk = _filled(x)
        workspaces = self._workspaces_of(trunk)
        # Threads that compute at once have a workspace each.
        workspace = workspaces.pop() if workspaces else Workspace(self.layouts, *trunk.shape[:3])
        output = torch.empty(workspace.output_shape)
        if output.numel():
            self._run(workspace, trunk, output)
        workspaces.append(workspace)
        return channels_last(output[..., : self.out_channels].permute(0, 3, 1, 2))

    def _run(self, workspace: Workspace, trunk: Tensor, output: Tensor) -> None:
        units, images, address, projected = workspace.units, len(trunk), trunk.data_ptr(), 0
        index, kept = 0, trunk
        threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
        while True:
            if threads > 1:
                with _lock:
                    numba.set_num_threads(threads)
                    index, address = run_threaded(units, index, images, address, projected, output.data_ptr())
            else:
                index, address = run(units, index, images, address, projected, output.data_ptr())
            if index == len(units):
                return
            projection, shortcut = self.projections[index], workspace.shortcuts[index]
            assert projection is not None
            assert shortcut is not None
            kept = _filled(projection(shortcut[..., : self.layouts[index].in_channels].permute(0, 3, 1, 2)))
            projected = kept.data_ptr()

    def _workspaces_of(self, trunk: Tensor) -> list[Workspace]:
        size = tuple(trunk.shape)
        workspaces = self._workspaces.setdefault(size, [])
        self._workspaces.move_to_end(size)
        if len(self._workspaces) > KEPT_SIZES:
            self._workspaces.popitem(last=False)
        return workspaces


class NumbaUnit:
    """Computes one unit, its shortcut given."""

    def __init__(self, unit: PackedUnit) -> None:
        self._given = threading.local()
        self._units = NumbaUnits([unit], [lambda pooled: self._given.shortcut])

    def __call__(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """The unit's output (N, O, H', W') for its input (N, I, H, W) and its shortcut, all float32."""
        self._given.shortcut = shortcut
        return self._units(x)


def _filled(x: Tensor) -> Tensor:
    """(N, C, H, W) as (N, H, W, channels filled up with zeros to whole words)."""
    places = x.permute(0, 2, 3, 1).contiguous()
    missing = -places.shape[3] % BLOCK
    # Padding keeps the format that the strides look like, which is ambiguous where a size is 1.
    return F.pad(places, (0, missing)).contiguous() if missing else places
