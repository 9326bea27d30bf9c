"""Elementwise work in blocks that stay in the cache of a processor core, for tensors (N, C, H, W) and for filters.

A chain of ten elementwise operations on a tensor larger than the cache reads and writes main memory ten times. Done
block by block it does so once, which is three to four times as fast. On other devices, under `torch.compile` (which
fuses such chains itself) and for tensors in another format than the default there is one block, the tensor itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Elements of a block for each thread: half a megabyte in float32.
BLOCK = 1 << 17
# A tensor of fewer blocks is not cut: it stays in the last-level cache, and calls of operators cost time too.
FEWEST_BLOCKS = 4

WHOLE = [slice(None)]


def row_blocks(rows: int, row_size: int, device: torch.device) -> list[slice]:
    """Cuts `rows` rows of `row_size` elements into blocks."""
    if rows * row_size <= FEWEST_BLOCKS * BLOCK or device.type != "cpu" or torch.compiler.is_compiling():
        return WHOLE
    block = BLOCK * torch.get_num_threads()
    if rows * row_size <= FEWEST_BLOCKS * block:
        return WHOLE
    step = max(1, block // row_size)
    return [slice(start, start + step) for start in range(0, rows, step)]


def part(x: Tensor | None, block: slice, dim: int = 0) -> Any:
    """A block of `x`, None of None; the only block is `x` itself, without the call of an operator."""
    if x is None or block is WHOLE[0]:
        return x
    return x[block] if dim == 0 else x[:, block]


class Planes:
    """How tensors (N, C, H, W) like `x` are cut into blocks of whole planes (H, W).

    Blocks are 4-D tensors with channels in dimension 1, so that operators see no difference: either the tensor itself
    or, of its view (1, N * C, H, W), a range of channels.
    """

    def __init__(self, x: Tensor) -> None:
        images, channels, height, width = x.shape
        self.images = images
        self.blocks = WHOLE
        if x.is_contiguous():
            self.blocks = row_blocks(images * channels, height * width, x.device)
        self.whole = self.blocks is WHOLE

    def view(self, x: Tensor) -> Tensor:
        """`x` (N, C', H', W') as blocks see it, to be cut with `part(x, block, 1)`."""
        return x if self.whole else x.reshape(1, -1, *x.shape[2:])

    def per_channel(self, parameter: Tensor | None) -> Tensor | None:
        """A parameter (C,), as (1, C, 1, 1) or repeated for every plane, to be cut with `part(x, block, 1)`."""
        if parameter is None:
            return None
        return (parameter if self.whole else parameter.repeat(self.images)).view(1, -1, 1, 1)

    def empty(self, like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor | None:
        """Memory for the results of all blocks, as blocks see it; None where the one block makes its own.

        Args:
            like: a tensor on the device.
            shape: (N, C', H', W'), by default that of `like`.
            dtype: by default that of `like`.
        """
        return None if self.whole else self.view(like.new_empty(shape or like.shape, dtype=dtype))

    def channel_sums(self, blocks: list[list[Tensor]]) -> list[Tensor]:
        """Adds up sums over blocks, several (channels of the block,) for each, to sums over the tensor, (C,) each."""
        if self.whole:
            return blocks[0]
        return [torch.cat(sums).view(self.images, -1).sum(0) for sums in zip(*blocks, strict=True)]


def put(
    target: Tensor | None,
    block: slice,
    value: Tensor,
    dtype: torch.dtype | None = None,
    memory: Tensor | None = None,
) -> Tensor:
    """Writes a block's result into `target`, a view as of `Planes.view`, and gives the target; None: the result.

    Args:
        target: memory for all blocks, or None.
        block: which one.
        value: its result.
        dtype: of the result if there is no target.
        memory: the `slot` that an operator was given; if `value` is it, nothing is left to do.
    """
    if target is None:
        return value if dtype is None else value.to(dtype)
    if value is not memory:
        part(target, block, 1).copy_(value)
    return target


def slot(target: Tensor | None, block: slice, dtype: torch.dtype) -> Tensor | None:
    """Where an operator may write a block's result itself: its part of `target`, if that is of the dtype."""
    return None if target is None or target.dtype != dtype else part(target, block, 1)
