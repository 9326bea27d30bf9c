"""A recipe's learning rate at another batch size than the recipe's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, cast, get_args

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.optim import Optimizer

from bnfree.errors import InputError

LearningRateScaling = Literal["none", "linear", "square_root"]
EXPONENTS: dict[LearningRateScaling, float] = {"none": 0.0, "linear": 1.0, "square_root": 0.5}

# The factor that a group's learning rate has in it. It travels in the optimizer's state, so a resumed run knows it.
FACTOR = "learning_rate_factor"


def check_scaling(scaling: str, base_batch_size: int) -> None:
    """Refuses what cannot be a rule.

    Raises:
        InputError: an unknown rule or a batch size below 1.
    """
    if scaling not in EXPONENTS:
        known = ", ".join(map(repr, get_args(LearningRateScaling)))
        raise InputError(f"learning_rate_scaling={scaling!r} is not known; choose one of {known}.")
    if base_batch_size < 1:
        raise InputError(f"base_batch_size={base_batch_size} must be at least 1.")


def learning_rate_factor(scaling: LearningRateScaling, batch_size: int, base_batch_size: int) -> float:
    """(batch_size / base_batch_size)^e with e = 0 (`none`), 1 (`linear`) or 1/2 (`square_root`).

    The largest stable rate grows with the batch size for SGD and with its root for Adam, until the noise of the
    gradient no longer limits it (Granziol, Zohren and Roberts, JMLR 2022, arXiv 2006.09092).

    Args:
        scaling: the rule.
        batch_size: images of one optimizer step.
        base_batch_size: images of one optimizer step of the recipe.
    """
    return (batch_size / base_batch_size) ** EXPONENTS[scaling]


def effective_batch_size(trainer: Trainer) -> int:
    """Images of one optimizer step: batch size of a process x processes x accumulated batches.

    Raises:
        InputError: the data do not say their batch size, or the accumulation changes during the run.
    """
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in cast(Any, trainer).callbacks):
        raise InputError(
            "GradientAccumulationScheduler changes the batch size during the run, which learning_rate_scaling cannot "
            "follow; set trainer.accumulate_grad_batches in its place or learning_rate_scaling to 'none'."
        )
    batch_size = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
    if not isinstance(batch_size, int):
        trainer.fit_loop.setup_data()
        batch_size = getattr(trainer.train_dataloader, "batch_size", None)
    if not isinstance(batch_size, int):
        raise InputError(
            f"learning_rate_scaling needs the batch size, and batch_size={batch_size!r} of the datamodule or its "
            "training loader is no integer: give it one, or set learning_rate_scaling to 'none'."
        )
    return batch_size * trainer.world_size * trainer.accumulate_grad_batches


def scale_learning_rates(
    optimizer: Optimizer, trainer: Trainer, scaling: LearningRateScaling, base_batch_size: int
) -> None:
    """Multiplies the learning rate of every group by the rule's factor and says so; before the schedule is made.

    Args:
        optimizer: a new optimizer with the recipe's learning rates.
        trainer: the trainer of the run.
        scaling: the rule; `none` does nothing.
        base_batch_size: images of one optimizer step of the recipe.

    Raises:
        InputError: the batch size cannot be known.
    """
    if scaling == "none":
        return
    batch_size = effective_batch_size(trainer)
    factor = learning_rate_factor(scaling, batch_size, base_batch_size)
    base = float(optimizer.param_groups[0]["lr"])
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * factor
        group[FACTOR] = factor
    if trainer.ckpt_path is None:
        warm_up = "; above 4 a warm-up is usual (`warmup` of LinearDecay)" if factor > 4 else ""
        rank_zero_info(
            f"Learning rate {base:g} x {factor:.3g} = {base * factor:.3g}: {scaling} rule for {batch_size} images per "
            f"step in place of {base_batch_size}{warm_up}."
        )


def resume_learning_rates(trainer: Trainer, scaling: LearningRateScaling, base_batch_size: int, rescale: bool) -> None:
    """Settles the learning rates of a resumed run, whose checkpoint has brought back those of its own batch size.

    Args:
        trainer: the trainer of the run, its states restored.
        scaling: the rule in force.
        base_batch_size: images of one optimizer step of the recipe.
        rescale: True: as the rule wants them for the batch size in force; False: left as they are, which is said.
    """
    wanted = 1.0 if scaling == "none" else learning_rate_factor(scaling, effective_batch_size(trainer), base_batch_size)
    restored = trainer.optimizers[0].param_groups[0].get(FACTOR, 1.0)
    if abs(wanted / restored - 1) < 1e-9:
        return
    if not rescale:
        rank_zero_info(
            f"The learning rate goes on with the checkpoint's factor {restored:.3g}, where this run's batch size and "
            f"learning_rate_scaling={scaling!r} give {wanted:.3g}; --model.rescale_on_resume=true changes it."
        )
        return
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    multiply_learning_rates(trainer.optimizers, schedulers, wanted / restored)
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            group[FACTOR] = wanted
    rank_zero_info(f"Learning rate x {wanted / restored:.3g}: factor {wanted:.3g} in place of {restored:.3g}.")


def multiply_learning_rates(optimizers: Iterable[Optimizer], schedulers: Iterable[Any], factor: float) -> None:
    """Multiplies all learning rates, in such a way that the schedules go on from where they are."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for key in {"lr", "initial_lr"} & set(group):
                group[key] = group[key] * factor
    for scheduler in schedulers:
        for attribute in ("base_lrs", "_last_lr"):
            rates = getattr(scheduler, attribute, None)
            if rates is not None:
                setattr(scheduler, attribute, [rate * factor for rate in rates])
