"""Learning-rate schedules by class: what they are given, and where a resumed run stands in them."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    LRScheduler,
    ReduceLROnPlateau,
    SequentialLR,
)

from bnfree.errors import InputError

LENGTHS = ("total", "T_max", "total_steps", "total_iters")
"""Arguments that are the length of the whole schedule, and are given the number of steps unless the user gives one."""


class WithLength(Protocol):
    """A class of schedule whose length, under whichever of these names, is not in the config."""

    def __call__(
        self,
        optimizer: Optimizer,
        /,
        *,
        total: int,
        T_max: int,  # noqa: N803 - torch's name
        total_steps: int,
        total_iters: int,
    ) -> LRScheduler:
        """The schedule of an optimizer."""


class WithoutLength(Protocol):
    """A class of schedule all of whose arguments are in the config."""

    def __call__(self, optimizer: Optimizer, /) -> LRScheduler:
        """The schedule of an optimizer."""


LRSchedulerCallable = WithLength | WithoutLength | Callable[[Optimizer, int], LRScheduler] | None
# A class path with its arguments, as in a config: a parser does not see into a lambda in a union.
LINEAR_DECAY: Any = {"class_path": "bnfree.lightning_modules.modules.linear_decay.LinearDecay"}


def resolve_factory(factory: Any) -> Any:
    """A callable that makes the schedule, of what the user gave; checked as far as it can be before there is a run.

    Args:
        factory: a class of `torch.optim.lr_scheduler` or another one, a callable of (optimizer) or (optimizer, number
            of steps), a mapping with `class_path` and `init_args`, or None for a constant rate.

    Raises:
        InputError: a class that holds other schedules, or one whose arguments are missing.
    """
    if isinstance(factory, dict):
        from bnfree.plugins import imported

        made = imported(factory["class_path"], "lr_scheduler")
        factory = partial(made, **factory["init_args"]) if factory.get("init_args") else made
    schedule, given = _class_and_arguments(factory)
    if schedule is None:
        return factory
    if issubclass(schedule, SequentialLR | ChainedScheduler):
        raise InputError(
            f"lr_scheduler={schedule.__name__} is made of schedules that hold their optimizer already, which a config "
            "cannot give it; write a class of your own that makes them from (optimizer, total)."
        )
    missing = _missing(schedule, given)
    if missing and (schedule.__module__.startswith("torch.") or len(missing) > 1):
        raise InputError(
            f"lr_scheduler={schedule.__name__} needs {' and '.join(missing)}; give it with "
            f"--model.lr_scheduler.{missing[0]}=VALUE."
        )
    return factory


def make_schedule(factory: Any, optimizer: Optimizer, total: int) -> LRScheduler | None:
    """The schedule of an optimizer for a run of so many steps.

    The number of steps goes to an argument that is a length (`LENGTHS`) and not given; of a class of the user's own, to
    its second argument whatever it is called. Other classes are not told it.

    Args:
        factory: what `resolve_factory` returns.
        optimizer: the optimizer.
        total: number of steps of the whole run; of epochs, if the schedule moves by epochs.

    Returns:
        The schedule; None for a constant rate.

    Raises:
        InputError: values that the class refuses.
    """
    if factory is None:
        return None
    schedule, given = _class_and_arguments(factory)
    try:
        if schedule is None:
            made = factory(optimizer, total) if _takes_two(factory) else factory(optimizer)
        else:
            length = next((name for name in LENGTHS if name in _parameters(schedule) and name not in given), None)
            if length is not None:
                made = factory(optimizer, **{length: total})
            else:
                made = factory(optimizer, total) if _missing(schedule, given) else factory(optimizer)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        name = schedule.__name__ if schedule is not None else factory
        raise InputError(f"lr_scheduler={name} refuses its arguments {given or ''}: {error}.") from error
    scheduler: LRScheduler = made
    return scheduler


def schedule_config(scheduler: LRScheduler | None, interval: str) -> dict[str, Any] | None:
    """What Lightning is told about a schedule: when it moves and, for a plateau, what it watches.

    Args:
        scheduler: the schedule.
        interval: `step` or `epoch`.
    """
    if scheduler is None:
        return None
    if isinstance(scheduler, ReduceLROnPlateau):
        # Lightning's own class of that name says what to watch.
        monitor = getattr(scheduler, "monitor", "val/acc" if scheduler.mode == "max" else "val/loss")
        return {"scheduler": scheduler, "interval": "epoch", "monitor": monitor}
    return {"scheduler": scheduler, "interval": interval}


@dataclass(frozen=True)
class SchedulePosition:
    """Where a run stands in its schedule: in a checkpoint, so that a run of another length can take it up."""

    epochs: float
    """Epochs trained; a part of one as the share of its images."""
    total: int
    """Steps of the schedule."""
    max_epochs: int
    """Epochs of the run; -1 where steps decide."""
    interval: str
    """`step` or `epoch`."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def position_of(trainer: Trainer, total: int, interval: str) -> SchedulePosition:
    """Where a run stands now.

    Args:
        trainer: of the run.
        total: steps that its schedule was made for.
        interval: `step` or `epoch`.
    """
    epochs = trainer.fit_loop.epoch_progress.current
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    share = 0.0
    # Between two epochs the batches are those of the finished one, which counts already.
    if epochs.ready > epochs.completed and trainer.num_training_batches not in (0, float("inf")):
        share = batches.processed / trainer.num_training_batches
    by_steps = interval == "step" and trainer.max_steps == total
    return SchedulePosition(epochs.completed + share, total, -1 if by_steps else trainer.max_epochs or -1, interval)


def step_in(now: SchedulePosition, then: SchedulePosition, steps_taken: int) -> int:
    """The step of the schedule in force that a resumed run stands at.

    The place is a share of the run: with other batches an epoch has other steps, and a longer run has more of them.

    Args:
        now: the run that goes on, its `epochs` unused.
        then: the checkpoint's.
        steps_taken: steps of the checkpoint's schedule.
    """
    if now.interval == "epoch":
        return int(then.epochs + 1e-9)
    same_epochs = then.interval == "step" and then.total * now.max_epochs == now.total * then.max_epochs
    if now.max_epochs < 1 or then.max_epochs < 1 or same_epochs:
        return steps_taken
    return round(then.epochs * now.total / now.max_epochs)


def replayed(factory: Any, optimizer: Optimizer, total: int, step: int) -> LRScheduler | None:
    """A schedule that has taken so many steps from its start, with the rates of that moment in the optimizer.

    Args:
        factory: what `resolve_factory` returns.
        optimizer: whose groups have the rates that the schedule starts from as `initial_lr`.
        total: steps of the whole run.
        step: steps to take.
    """
    for group in optimizer.param_groups:
        group["lr"] = group.get("initial_lr", group["lr"])
    scheduler = make_schedule(factory, optimizer, total)
    with warnings.catch_warnings():
        # That the optimizer has taken no step since: it has, before it was restored.
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        for _ in range(step if scheduler is not None else 0):
            scheduler.step()  # type: ignore[union-attr]
    return scheduler


def resume_schedule(
    trainer: Trainer, factory: Any, total: int, interval: str, then: SchedulePosition | None, stale: bool
) -> None:
    """Puts the schedule of a resumed run where it belongs, before the first step, if it is not there.

    Restoring a checkpoint brings back the old schedule: with its old length, at so many of its steps. A run of another
    length, with other batches or other settings gets the one of today, at the same share of the run. Otherwise all is
    left as it was restored, to the bit.

    Args:
        trainer: the trainer, its states restored.
        factory: what `resolve_factory` returns.
        total: steps of the whole run.
        interval: `step` or `epoch`.
        then: where the checkpoint's run stood; None in checkpoints that do not say: their length is taken from their
            steps, if they end with an epoch.
        stale: the schedule or its rate has other settings than the checkpoint's.
    """
    (config,) = trainer.lr_scheduler_configs or (None,)
    if config is None or isinstance(config.scheduler, ReduceLROnPlateau):
        return
    taken = config.scheduler.last_epoch
    now = position_of(trainer, total, interval)
    if then is None:
        epochs = trainer.current_epoch
        length = (
            round(taken / epochs * now.max_epochs) if epochs and now.max_epochs > 0 and interval == "step" else total
        )
        then = SchedulePosition(epochs, length, now.max_epochs, interval)
    if not stale and (then.total, then.max_epochs, then.interval) == (total, now.max_epochs, interval):
        return
    step = step_in(now, then, taken)
    (optimizer,) = trainer.optimizers
    scheduler = replayed(factory, optimizer, total, step)
    if scheduler is not None:
        config.scheduler = scheduler
        rank_zero_info(
            f"The schedule goes on at step {step} of {total}, with learning rate {optimizer.param_groups[0]['lr']:.3g}."
        )


def _class_and_arguments(factory: Any) -> tuple[type | None, dict[str, Any]]:
    given: dict[str, Any] = {}
    while isinstance(factory, partial):
        given = {**factory.keywords, **given}
        # jsonargparse hands the class to a function of its own.
        factory = next((value for value in factory.args if inspect.isclass(value)), factory.func)
    return (factory, given) if inspect.isclass(factory) else (None, given)


def _parameters(schedule: type) -> dict[str, inspect.Parameter]:
    """The arguments of a class, without `self` and the optimizer."""
    return dict(list(inspect.signature(schedule.__init__).parameters.items())[2:])  # type: ignore[misc]


def _missing(schedule: type, given: dict[str, Any]) -> list[str]:
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        name
        for name, parameter in _parameters(schedule).items()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind not in variadic
        and name not in given
        and name not in LENGTHS
    ]


def _takes_two(factory: Any) -> bool:
    try:
        inspect.signature(factory).bind(None, 1)
    except TypeError:
        return False
    except ValueError:
        return True
    return True
