"""A packed residual unit on bits: 64 channels a word, XNOR and popcount, compiled by numba at first use."""

from __future__ import annotations

import threading

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnfree.packing import numba_kernels as kernels
from bnfree.packing.layers import PackedUnit
from bnfree.packing.numba_kernels import LANES

# Not every threading layer of numba bears being entered by two threads at once.
_lock = threading.Lock()


class NumbaUnit:
    """Computes a unit with the kernels of `numba_kernels`, on `torch.get_num_threads()` threads."""

    def __init__(self, unit: PackedUnit) -> None:
        values = unit.weight.values().numpy()
        self.out_channels, self.in_channels, self.kernel_size, _ = unit.weight.shape
        self.stride = unit.stride
        self.weights = _words_of(values > 0)
        self.masks = None if unit.weight.survivors is None else _words_of(values != 0)
        survivors = np.abs(values).sum(1, dtype=np.int64).reshape(self.out_channels, -1)
        self.survivors = np.ascontiguousarray(_blocks_of(survivors).swapaxes(1, 2))
        self.thresholds, self.scale, self.rprelu = (
            constant.contiguous().numpy() for constant in (unit.thresholds, unit.weight.scale, unit.rprelu)
        )

    def __call__(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """The unit's output (N, O, H', W') for its input (N, I, H, W) and its shortcut, all float32."""
        activations, residual = (_channels_last(tensor) for tensor in (x, shortcut))
        bits = np.empty((*activations.shape[:3], -(-self.in_channels // LANES)), np.uint64)
        output = np.empty(residual.shape, np.float32)
        threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
        binarize, unit = kernels.binarize, kernels.unit
        if threads > 1:
            binarize, unit = kernels.binarize_threaded, kernels.unit_threaded
        with _lock:
            if threads > 1:
                numba.set_num_threads(threads)
            binarize(activations, self.thresholds, bits)
            unit(
                bits, self.weights, self.masks, self.survivors, self.in_channels, self.kernel_size, self.stride,
                residual, self.scale, self.rprelu, output,
            )  # fmt: skip
        return torch.from_numpy(output).permute(0, 3, 1, 2)


def _words_of(bits: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Bits (O, I, kH, kW) as words (blocks, taps, words, 64)."""
    out_channels, in_channels = bits.shape[:2]
    taps = np.zeros((out_channels, bits[0, 0].size, -(-in_channels // LANES) * LANES), np.bool_)
    taps[:, :, :in_channels] = bits.reshape(out_channels, in_channels, -1).swapaxes(1, 2)
    packed = np.packbits(taps, axis=-1, bitorder="little").view("<u8").astype(np.uint64)
    return np.ascontiguousarray(np.moveaxis(_blocks_of(packed), 1, -1))


def _blocks_of(filters: NDArray[np.generic]) -> NDArray[np.generic]:
    """(O, ...) as (blocks, 64, ...), filled up with zeros."""
    blocks = -(-len(filters) // LANES)
    padded = np.zeros((blocks * LANES, *filters.shape[1:]), filters.dtype)
    padded[: len(filters)] = filters
    return padded.reshape(blocks, LANES, *filters.shape[1:])


def _channels_last(x: Tensor) -> NDArray[np.float32]:
    return x.permute(0, 2, 3, 1).contiguous().numpy()
