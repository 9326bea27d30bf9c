"""Which Lightning strategies a callback that reads whole tensors can work with."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from bnfree.errors import InputError


def shards_parameters(trainer: Trainer) -> bool:
    """Whether no process sees a whole parameter or gradient: FSDP, model parallelism or DeepSpeed."""
    return isinstance(trainer.strategy, (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy))


def refuse_sharded_parameters(trainer: Trainer, callback: str) -> None:
    """Stops a run in which no process sees a whole parameter or gradient.

    Args:
        trainer: the trainer of the run.
        callback: name of the callback, for the message.

    Raises:
        InputError: FSDP, model parallelism or DeepSpeed.
    """
    if shards_parameters(trainer):
        raise InputError(
            f"trainer.strategy={type(trainer.strategy).__name__} splits parameters among processes, and {callback} "
            "needs whole filters; set trainer.strategy to 'ddp' or remove the callback."
        )
