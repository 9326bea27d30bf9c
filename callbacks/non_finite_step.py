"""A step that was not finite, kept with all that it is made of, and done again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torchmetrics import Metric

from bnfree.callbacks.strategies import shards_parameters
from bnfree.diagnostics.finiteness import NonFinite, first_non_finite
from bnfree.errors import InputError

MOST_BATCHES = 8
"""Batches of one accumulated step that are kept for its replay, the last ones."""


@dataclass
class Step:
    """One optimizer step to be: what it is made of, as references."""

    number: int
    batches: list[dict[str, Any]] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    flag: Tensor | None = None
    """Whether it must not be taken, on the host once `copied` is there."""
    copied: Any = None
    """Event of a GPU; None if `flag` is there already."""

    def add(self, pl_module: LightningModule, batch: Any, index: int, epoch: int) -> None:
        """Takes in a batch."""
        kept = {"index": index, "epoch": epoch, "batch": batch, "random": _random_state(pl_module)}
        self.batches = [*self.batches, kept][-MOST_BATCHES:]


def replay(file: str | Path, module: LightningModule) -> NonFinite | None:
    """Does a step again that was not finite, up to the gradients.

    Args:
        file: the `non_finite.pt` of a run.
        module: a LightningModule as that of the run, whose weights are replaced; moved nowhere.

    Returns:
        The first place that is not finite; None if all is finite here, as after a change to the module that helps.

    Raises:
        InputError: a file of another kind, or one whose batches could not be kept.

    Example:
        >>> replay("RUN/non_finite.pt", module)  # doctest: +SKIP
        NonFinite(kind='output', name='backbone.classifier')
    """
    content: Any = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or "batches" not in content or "state_dict" not in content:
        raise InputError(f"file={str(file)!r} is no record of a step; give the non_finite.pt of a run.")
    kept = [entry for entry in content["batches"] if entry["batch"] is not None]
    if not kept:
        raise InputError(f"file={str(file)!r} holds no batch, as those of the run were no plain tensors.")
    module.load_state_dict(content["state_dict"])
    module.train()
    for entry in kept:
        torch.set_rng_state(entry["random"]["cpu"])
        found = _look(module, partial(module.training_step, entry["batch"], entry["index"]), entry["batch"])
        if found is not None:
            return found
    return None


def _random_state(pl_module: LightningModule) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if pl_module.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(pl_module.device)
    return state


def record(trainer: Trainer, pl_module: LightningModule, step: Step) -> dict[str, Any]:
    """What `replay` needs, and what else tells the step from others; the weights are those before it."""
    plain = [{**kept, "batch": kept["batch"] if _is_plain(kept["batch"]) else None} for kept in step.batches]
    return {
        "step": step.number,
        "seed": os.environ.get("PL_GLOBAL_SEED"),
        "precision": str(trainer.precision),
        "rank": trainer.global_rank,
        "losses": [float(loss.float().mean()) for loss in step.losses],
        "batches": plain,
        "state_dict": {name: value.detach().clone() for name, value in pl_module.state_dict().items()},
        "optimizer_states": [] if shards_parameters(trainer) else [o.state_dict() for o in trainer.optimizers],
    }


def _is_plain(value: Any) -> bool:
    """Whether `torch.load(weights_only=True)` reads it back."""
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(map(_is_plain, value.values()))
    return type(value) in (Tensor, int, float, str, bool, type(None))


def where(trainer: Trainer, pl_module: LightningModule, step: Step) -> tuple[NonFinite | None, dict[str, Any] | None]:
    """The first place that is not finite, found by computing the step's batches again, and the batch."""
    # With manual optimisation, computing again would take steps; with sharded weights, other processes are needed.
    if not pl_module.automatic_optimization or shards_parameters(trainer):
        return None, None
    for kept in step.batches:
        with ExitStack() as context:
            context.enter_context(_as_before(pl_module, kept["random"]))
            context.enter_context(trainer.precision_plugin.train_step_context())
            found = _look(pl_module, partial(pl_module.training_step, kept["batch"], kept["index"]), kept["batch"])
        if found is not None:
            return found, kept
    return None, None


def where_in_validation(trainer: Trainer, pl_module: LightningModule, last: tuple[Any, int] | None) -> NonFinite | None:
    """The first place that is not finite in the last batch of a validation, given with its index."""
    # With several loaders, the step's arguments are others.
    if last is None or shards_parameters(trainer) or len(trainer.num_val_batches) > 1:
        return None
    with trainer.precision_plugin.val_step_context():
        return _look(pl_module, partial(pl_module.validation_step, *last), last[0])


def _look(pl_module: LightningModule, step: Callable[[], Any], batch: Any) -> NonFinite | None:
    def run() -> Tensor:
        output = step()
        loss = output["loss"] if isinstance(output, dict) else output
        return loss if isinstance(loss, Tensor) else torch.zeros(())

    with _without_logging(pl_module), _own_statistics(pl_module):
        return first_non_finite(pl_module, run, batch)


@contextmanager
def _own_statistics(pl_module: LightningModule) -> Iterator[None]:
    """Synchronised batch norm without the other processes, which find the place earlier, later or not at all."""
    layers = [module for module in pl_module.modules() if isinstance(module, nn.SyncBatchNorm)]
    for layer in layers:
        layer.__dict__["forward"] = partial(nn.BatchNorm2d.forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


@contextmanager
def _without_logging(pl_module: LightningModule) -> Iterator[None]:
    """Nothing is logged and no metric is updated."""
    kept = [(metric, metric.update) for metric in pl_module.modules() if isinstance(metric, Metric)]
    methods: Any = vars(pl_module)
    methods.update({name: lambda *_, **__: None for name in ("log", "log_dict")})
    for metric, _ in kept:
        metric.update = lambda *_, **__: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        for name in ("log", "log_dict"):
            methods.pop(name, None)
        for metric, update in kept:
            metric.update = update  # type: ignore[method-assign]


@contextmanager
def _as_before(pl_module: LightningModule, random: dict[str, Tensor]) -> Iterator[None]:
    """The random state of a batch; afterwards that of now, and buffers such as running statistics as they are now."""
    buffers = [(buffer, buffer.clone()) for buffer in pl_module.buffers()]
    devices = [pl_module.device] if "cuda" in random else []
    with torch.random.fork_rng(devices):
        torch.set_rng_state(random["cpu"])
        if "cuda" in random:
            torch.cuda.set_rng_state(random["cuda"], pl_module.device)
        try:
            yield
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)
