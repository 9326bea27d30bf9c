"""The channels-last memory format for the backbone and its images."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bnfree.callbacks.networks import network_to_call


class ChannelsLast(Callback):
    """Changes how training is computed, not what: weights and images of `backbone` lie in memory channels last.

    In this format (N, H, W, C in memory, all shapes as before) GPUs with tensor cores compute convolutions in half
    precision; on a CPU it gains nothing (`benchmarks/channels_last.py`). Results differ by the rounding of sums in
    another order. Checkpoints are the same: one written with it loads without it and the other way round.

    Raises:
        InputError: at the start of a run, a LightningModule that does not hold its network in one attribute.
    """

    def __init__(self) -> None:
        self._hook: RemovableHandle | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Converts the weights, before a strategy wraps the module, and from here on every batch of images."""
        backbone = network_to_call(pl_module, "ChannelsLast")
        self._release()
        backbone.to(memory_format=torch.channels_last)
        self._hook = backbone.register_forward_pre_hook(_convert_images)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leaves images as they come."""
        self._release()

    def _release(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


def _convert_images(backbone: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        x.contiguous(memory_format=torch.channels_last) if isinstance(x, Tensor) and x.dim() == 4 else x for x in inputs
    )
