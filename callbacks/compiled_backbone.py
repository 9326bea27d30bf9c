"""`torch.compile` for the backbone, in place."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from bnfree.callbacks.networks import network_to_call
from bnfree.errors import InputError


class CompiledBackbone(Callback):
    """Changes how training is computed, not what: compiles `backbone` in place with `torch.compile`.

    Names of parameters stay as they are, so a checkpoint written with it loads without it and the other way round.
    Results differ from the uncompiled ones by rounding, and the first step takes the time of the compilation (a minute
    or so for ReActNet-18; later runs find it in PyTorch's cache). Batches of another size are compiled again: an even
    number of batches saves that time.

    Args:
        mode: `default`, `reduce-overhead`, `max-autotune` or `max-autotune-no-cudagraphs`, see `torch.compile`.
        fullgraph: raise an error where the network cannot be compiled as one graph, in place of compiling its parts.
        dynamic: compile for all batch sizes at once; None: only once a second size is met.

    Raises:
        InputError: unknown mode; at the start of a run also a LightningModule that does not hold its network in
            one attribute.
    """

    def __init__(self, mode: str = "default", fullgraph: bool = False, dynamic: bool | None = None) -> None:
        modes = list(torch._inductor.list_mode_options())
        if mode not in modes:
            raise InputError(f"mode={mode!r} is not known to torch.compile; choose one of {', '.join(modes)}.")
        self.mode, self.fullgraph, self.dynamic = mode, fullgraph, dynamic

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compiles the backbone, before a strategy wraps the module that holds it."""
        backbone = network_to_call(pl_module, "CompiledBackbone")
        if backbone._compiled_call_impl is None:
            backbone.compile(mode=self.mode, fullgraph=self.fullgraph, dynamic=self.dynamic)
