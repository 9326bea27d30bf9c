"""Packed networks on bits: 32 channels a word, XNOR and popcount, compiled by numba at first use."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numba
import torch
from torch import Tensor
from torch.nn import functional as F

from bnfree.packing.layers import PackedLayers, PackedUnit
from bnfree.packing.numba_layout import RealLayout, UnitLayout
from bnfree.packing.numba_pixel_layout import PixelLayout, fits
from bnfree.packing.numba_pixel_tile import has_instruction
from bnfree.packing.numba_pixels import run_pixels, run_pixels_threaded
from bnfree.packing.numba_run import run, run_threaded
from bnfree.packing.numba_unit import BLOCK
from bnfree.packing.numba_workspace import Workspace
from bnfree.packing.pixels import Normalization

# Not every threading layer of numba bears being entered by two threads at once.
_lock = threading.Lock()
# Sizes of images for which the memory to work in is kept.
KEPT_SIZES = 4
# Numbers of a trunk that are computed at a time: larger batches need more memory and are not faster.
AT_ONCE = 1 << 19


class NumbaNetwork:
    """Computes a network up to its last unit, on `torch.get_num_threads()` threads.

    Args:
        layers: the network.
        normalization: of 8-bit images; without it, images are normalised ones.
    """

    def __init__(self, layers: PackedLayers, normalization: Normalization | None = None) -> None:
        self.stem, self.normalization = layers.stem, normalization
        units = _layouts(layers.units)
        self._layers = _Layers(RealLayout.of_stem(layers.stem), units)
        self._pixel_layers: _Layers | None = None
        # Without the instruction, bytes take longer than normalised numbers.
        if normalization is not None and has_instruction() and fits(layers.stem, normalization):
            self._pixel_layers = _Layers(PixelLayout(layers.stem, normalization), units)

    def __call__(self, images: Tensor) -> Tensor:
        """The last unit's output (N, O, H', W') for images (N, C, H, W), normalised float32 or 8-bit."""
        layers = self._layers
        if images.dtype == torch.uint8:
            if self._pixel_layers is not None:
                layers = self._pixel_layers
            elif self.normalization is not None:
                images = self.normalization(images)
        stride = self.stem.stride * (2 if self.stem.pool else 1)
        numbers = images.shape[2] * images.shape[3] * len(self.stem.bias) / stride**2
        step = max(1, int(AT_ONCE / numbers)) * torch.get_num_threads()
        parts = [layers.run(part.contiguous()) for part in images.split(step)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class NumbaUnit:
    """Computes one unit, its shortcut given."""

    def __init__(self, unit: PackedUnit) -> None:
        self._layers = _Layers(None, _layouts([unit]))

    def __call__(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """The unit's output (N, O, H', W') for its input (N, I, H, W) and its shortcut, all float32."""
        return self._layers.run(_filled(x), _filled(shortcut))


class _Layers:
    """Layers, and memory for the sizes of images that came last."""

    def __init__(self, stem: RealLayout | PixelLayout | None, units: Sequence[UnitLayout]) -> None:
        self.stem, self.units = stem, units
        self.out_channels = units[-1].out_channels
        self._workspaces: OrderedDict[tuple[int, ...], list[Workspace]] = OrderedDict()

    def run(self, source: Tensor, residual: Tensor | None = None) -> Tensor:
        """The last unit's output (N, O, H', W').

        Args:
            source: images (N, C, H, W) as the stem has them; without one the first unit's input, (N, H, W, filled
                channels).
            residual: the first unit's shortcut, likewise; None: it is computed.
        """
        sizes = source.shape[2:] if self.stem is not None else source.shape[1:3]
        workspaces = self._workspaces_of(len(source), *sizes)
        # Threads that compute at once have a workspace each.
        workspace = workspaces.pop() if workspaces else self._new_workspace(len(source), sizes, residual is not None)
        output = torch.empty(workspace.output_shape)
        arguments = (
            workspace.stem, workspace.units, workspace.projections, len(source), workspace.trunk or source.data_ptr(),
            0 if residual is None else residual.data_ptr(), output.data_ptr(),
        )  # fmt: skip
        threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
        if not len(source):
            pass
        elif threads > 1:
            with _lock:
                numba.set_num_threads(threads)
                if workspace.trunk:
                    run_pixels_threaded(workspace.pixels, len(source), source.data_ptr())
                run_threaded(*arguments)
        else:
            if workspace.trunk:
                run_pixels(workspace.pixels, len(source), source.data_ptr())
            run(*arguments)
        workspaces.append(workspace)
        return output[..., : self.out_channels].permute(0, 3, 1, 2)

    def _new_workspace(self, images: int, sizes: Sequence[int], given: bool) -> Workspace:
        return Workspace(self.stem, self.units, images, sizes[0], sizes[1], given)

    def _workspaces_of(self, *sizes: int) -> list[Workspace]:
        workspaces = self._workspaces.setdefault(sizes, [])
        self._workspaces.move_to_end(sizes)
        if len(self._workspaces) > KEPT_SIZES:
            self._workspaces.popitem(last=False)
        return workspaces


def _layouts(units: Sequence[PackedUnit]) -> list[UnitLayout]:
    return [UnitLayout(unit, following) for unit, following in zip(units, [*units[1:], None], strict=True)]


def _filled(x: Tensor) -> Tensor:
    """(N, C, H, W) as (N, H, W, channels filled up with zeros to whole words)."""
    places = x.permute(0, 2, 3, 1).contiguous()
    missing = -places.shape[3] % BLOCK
    # Padding keeps the format that the strides look like, which is ambiguous where a size is 1.
    return F.pad(places, (0, missing)).contiguous() if missing else places
