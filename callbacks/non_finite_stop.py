"""What happens when numbers stop being finite: the run stops and says where, or the step is left out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from bnfree import checksums
from bnfree.callbacks.adaptive_gradient_clipping import AdaptiveGradientClipping
from bnfree.callbacks.non_finite_step import Step, record, where, where_in_validation
from bnfree.callbacks.run_files import run_directory
from bnfree.callbacks.strategies import shards_parameters
from bnfree.diagnostics.finiteness import NonFinite, any_non_finite
from bnfree.errors import InputError, NonFiniteError
from bnfree.files import whole_file
from bnfree.state_dicts import plain_name

FILE = "non_finite.pt"
LEAST_SCALE = 2.0**-8
"""Below, a scaler of losses has halved its scale 24 times and found no gradient that fits into 16 bits."""


class NonFiniteStop(Callback):
    """Changes training, only where it has gone wrong: a loss or gradient that is NaN or infinite takes no step.

    Looks just before each optimizer step. With `stop` the run ends with a `NonFiniteError` that names the step and the
    first layer whose output or gradient is not finite; weights and optimizer are those before the step, and lie with
    the batch in `non_finite.pt` in the run directory, from which `replay` does the step again. With `skip` the step is
    left out whole (weights, momentum and weight decay), said once, and `most_skips` in a row stop the run. All
    processes decide alike. A validation loss, or a metric that a checkpoint callback goes by, that is not finite stops
    too, and is never the best; nor are weights saved that are not finite.

    On a GPU the answer is read one step later, while the next is computed, and the step is meanwhile left out on the
    device itself, so that the GPU is never waited for. This needs an optimizer with a fused kernel, such as those that
    `ImageClassifier` chooses; with others, and at an optimizer's first step, the process waits. In 16-mixed precision
    the scaler leaves steps out as it should, and the run stops when its scale falls below 2^-8. What a forward pass
    changes, such as the running statistics of batch normalisation, is not undone by `skip`.

    On by default in runs of the `bnfree` command.

    Args:
        action: `stop`; `skip`: leave the step out and go on; `off`: do nothing.
        most_skips: steps left out in a row after which `skip` stops too.

    Raises:
        InputError: an argument out of range.
        NonFiniteError: while training, as described.

    Example:
        >>> trainer = Trainer(callbacks=[NonFiniteStop(action="skip", most_skips=3)], logger=False)
    """

    def __init__(self, action: Literal["stop", "skip", "off"] = "stop", most_skips: int = 10) -> None:
        if action not in ("stop", "skip", "off"):
            raise InputError(f"action={action!r} is not known; choose 'stop', 'skip' or 'off'.")
        if most_skips < 1:
            raise InputError(f"most_skips={most_skips} must be at least 1.")
        self.action, self.most_skips = action, most_skips
        self.skipped = 0
        self._in_a_row, self._said = 0, False
        self._step: Step | None = None
        self._pending: Step | None = None
        self._held: list[Optimizer] = []
        self._last_validation: tuple[Any, int] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Makes the checkpoint callbacks pass over metrics that are not finite."""
        if stage != "fit" or self.action == "off":
            return
        self.skipped, self._in_a_row, self._said = 0, 0, False
        self._step = self._pending = self._last_validation = None
        for checkpoint in trainer.checkpoint_callbacks:
            if isinstance(checkpoint, ModelCheckpoint) and "check_monitor_top_k" not in vars(checkpoint):
                rule = partial(_finite_and, checkpoint.check_monitor_top_k)
                checkpoint.check_monitor_top_k = rule  # type: ignore[method-assign]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remembers what the step is made of."""
        if self.action == "off":
            return
        if self._step is None:
            self._step = Step(trainer.global_step)
        self._step.add(pl_module, batch, batch_idx, trainer.current_epoch)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Remembers the loss."""
        if self._step is not None:
            self._step.losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Looks; stops, leaves the step out, or lets the device decide and asks it a step later."""
        if self.action == "off" or self._step is None:
            return
        self._answer(trainer, pl_module)
        step, scaler = self._step, getattr(trainer.precision_plugin, "scaler", None)
        flag = _flag(trainer, optimizer, step.losses, scaler)
        if _waits_not(flag, optimizer, scaler):
            self._hold(flag, optimizer, scaler)
            step.flag, step.copied = _start_copy(flag)
            self._pending = step
        elif bool(flag):
            # Before anything is changed, so that the step never happens.
            self._found(trainer, pl_module, step)
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
        else:
            self._in_a_row = 0
        self._step = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Lets go of the optimizers."""
        for optimizer in self._held:
            del optimizer.found_inf  # type: ignore[attr-defined]
        self._held.clear()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Asks for the last step before the weights are evaluated."""
        self._answer(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Remembers the batch, to find the layer with."""
        self._last_validation = (batch, batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops at a loss or a monitored metric that is not finite, before it can be taken for the best."""
        last, self._last_validation = self._last_validation, None
        if trainer.sanity_checking or self.action == "off" or trainer.state.fn != TrainerFn.FITTING:
            return
        names = sorted(name for name in _watched(trainer) if not _is_finite(trainer.callback_metrics[name]))
        # Each process may have metrics of its own.
        if self.action == "stop" and trainer.strategy.reduce_boolean_decision(bool(names), all=False):
            place = where_in_validation(trainer, pl_module, last)
            raise NonFiniteError(
                f"{names[0] if names else 'a validation metric of another process'} is not finite after step "
                f"{trainer.global_step} (epoch {trainer.current_epoch}){'' if place is None else f': {place}'}; "
                f"{_remedy(trainer)}"
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Asks for the last step before checkpoints are written."""
        self._answer(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuses to save weights that are not finite, over good ones perhaps."""
        if self.action == "off" or trainer.state.fn != TrainerFn.FITTING:
            return
        self._answer(trainer, pl_module)
        if shards_parameters(trainer):
            return
        wrong = next((name for name, p in pl_module.named_parameters() if not _is_finite(p)), None)
        if wrong is not None:
            raise NonFiniteError(
                f"the weights of {plain_name(wrong)} are not finite after step {trainer.global_step} (epoch "
                f"{trainer.current_epoch}), so that no checkpoint of them is written; {_remedy(trainer)}"
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lets go of batches and optimizers, and of the checkpoint callbacks."""
        for optimizer in self._held:
            vars(optimizer).pop("found_inf", None)
        self._held.clear()
        self._step = self._pending = self._last_validation = None
        for checkpoint in trainer.checkpoint_callbacks:
            if isinstance(vars(checkpoint).get("check_monitor_top_k"), partial):
                del checkpoint.check_monitor_top_k  # type: ignore[attr-defined]

    def _hold(self, flag: Tensor, optimizer: Optimizer, scaler: Any) -> None:
        """Lets the fused kernel leave the step out, as a scaler lets it."""
        if scaler is None:
            optimizer.found_inf = flag  # type: ignore[attr-defined]
            self._held.append(optimizer)

    def _answer(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step, self._pending = self._pending, None
        if step is None or step.flag is None:
            return
        if step.copied is not None:
            step.copied.synchronize()
        if bool(step.flag):
            self._found(trainer, pl_module, step)
        else:
            self._in_a_row = 0

    def _found(self, trainer: Trainer, pl_module: LightningModule, step: Step) -> None:
        """Says where, and stops unless the step may be left out."""
        self.skipped, self._in_a_row = self.skipped + 1, self._in_a_row + 1
        may_skip = self.action == "skip" and self._in_a_row <= self.most_skips
        if may_skip and self._said:
            return
        self._said = True
        file = run_directory(trainer) / FILE
        content = record(trainer, pl_module, step)
        place_of, bad_batch = where(trainer, pl_module, step)
        places = _gather((_place(place_of, step, bad_batch), bad_batch is not None))
        place = next((text for text, own in places if own), places[0][0])
        own_file = file if trainer.is_global_zero else file.with_name(f"non_finite_rank{trainer.global_rank}.pt")
        try:
            if trainer.is_global_zero or bad_batch is not None:
                with whole_file(own_file) as unfinished:
                    checksums.save({**content, "place": place}, unfinished)
        finally:
            # The first process to stop ends the others, which would leave their files unwritten.
            trainer.strategy.barrier()
        if may_skip:
            rank_zero_warn(f"{place}. The step is left out, as later ones will be without a word; {file} replays it.")
            return
        row = f" ({self._in_a_row} steps in a row were left out)" if self.action == "skip" else ""
        raise NonFiniteError(f"{place}{row}; {file} replays the step; {_remedy(trainer)}")


def _finite_and(check: Callable[..., bool], trainer: Trainer, current: Tensor | None = None) -> bool:
    """The checkpoint callback's own rule for finite metrics; others are never among the best."""
    # Each process may have a metric of its own, and all of them save or none does.
    finite = trainer.strategy.reduce_boolean_decision(current is None or _is_finite(current))
    return finite and check(trainer, current)


def _is_finite(value: Any) -> bool:
    return bool(torch.as_tensor(value).isfinite().all())


def _watched(trainer: Trainer) -> set[str]:
    monitored = {c.monitor for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor}
    losses = {name for name in trainer.callback_metrics if name.startswith("val") and name.endswith("loss")}
    return (monitored | losses) & set(trainer.callback_metrics)


def _flag(trainer: Trainer, optimizer: Optimizer, losses: list[Tensor], scaler: Any) -> Tensor:
    """Whether a step must not be taken, the same in all processes: shape (), 1 or 0."""
    if scaler is not None:
        # The scaler finds infinite gradients itself, and they are its way to the right scale.
        scale = scaler._scale
        flag = torch.zeros(()) if scale is None else (scale < LEAST_SCALE).float().view(())
    else:
        groups = [] if shards_parameters(trainer) else optimizer.param_groups
        parameters = [p for group in groups for p in group["params"]]
        flag = any_non_finite([p.grad for p in parameters if p.grad is not None])
        if losses:
            wrong = torch.stack([loss.float().mean() for loss in losses]).isfinite().all().logical_not()
            flag = torch.maximum(flag.to(wrong.device, non_blocking=True), wrong.to(flag.dtype))
    if trainer.world_size > 1 and torch.distributed.is_initialized():
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return flag


def _waits_not(flag: Tensor, optimizer: Optimizer, scaler: Any) -> bool:
    """Whether the answer can be read later, because a step that must not be taken is left out on the device."""
    if flag.device.type != "cuda":
        return False
    # A fused SGD that leaves its very first step out has momentum from uninitialised memory afterwards.
    fused = all(group.get("fused") for group in optimizer.param_groups) and bool(optimizer.state)
    return scaler is not None or fused


def _start_copy(flag: Tensor) -> tuple[Tensor, Any]:
    host = torch.empty((), pin_memory=True)
    host.copy_(flag, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return host, event


def _place(where: NonFinite | None, step: Step, bad: dict[str, Any] | None) -> str:
    kept = bad or step.batches[-1]
    loss = ", ".join(f"{float(loss.float().mean()):.4g}" for loss in step.losses)
    said = (
        where if where is not None else "a gradient is not finite, and a second pass over the batch does not show where"
    )
    batch = f"epoch {kept['epoch']}, batch {kept['index']}"
    return f"training has diverged at step {step.number} ({batch}; loss {loss or 'unknown'}): {said}"


def _gather(value: Any) -> list[Any]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def _remedy(trainer: Trainer) -> str:
    files = [
        Path(path)
        for callback in trainer.checkpoint_callbacks
        for path in (getattr(callback, "best_model_path", ""), getattr(callback, "last_model_path", ""))
        if path and Path(path).is_file()
    ]
    latest = max(files, key=lambda file: file.stat().st_mtime, default=None)
    kept = f"the last checkpoint is {latest}" if latest else "there is no checkpoint yet"
    rates = sorted(
        {group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups if "lr" in group}
    )
    rate = f" (it was {', '.join(f'{float(rate):.3g}' for rate in rates)})" if rates else ""
    clips = any(isinstance(callback, AdaptiveGradientClipping) for callback in _callbacks(trainer))
    return f"{kept}; lower the learning rate{rate}{'' if clips else ', or clip with AdaptiveGradientClipping'}."


def _callbacks(trainer: Any) -> list[Callback]:
    return list(trainer.callbacks)
