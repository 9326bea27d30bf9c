"""Optimizer settings that the user has changed since the checkpoint a run goes on from."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from bnfree.errors import InputError
from bnfree.lightning_modules.modules.learning_rate_scaling import multiply_learning_rates


class ChangedSettings(Callback):
    """Changes training: a resumed optimizer and schedule take the settings that the user has changed.

    Restoring their state brings back the old settings with it, against the config in force. A new learning rate scales
    the restored one, so that the schedule goes on from where it was. Of parameter groups with different values only
    those with the old value change: groups without weight decay stay without.

    Args:
        optimizer: old and new value of each changed argument of the optimizer.
        lr_scheduler: the same of the schedule.
    """

    def __init__(self, optimizer: dict[str, tuple[Any, Any]], lr_scheduler: dict[str, tuple[Any, Any]]) -> None:
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Changes the values, once all states are restored."""
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        for name, (old, new) in self.optimizer.items():
            groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
            if name == "lr" and old:
                multiply_learning_rates(trainer.optimizers, schedulers, new / old)
            else:
                for group in groups:
                    if _same(group.get(name), old):
                        group[name] = tuple(new) if isinstance(new, list) else new
        for name, (old, new) in self.lr_scheduler.items():
            for scheduler in schedulers:
                if _same(getattr(scheduler, name, None), old):
                    setattr(scheduler, name, new)


def changed_settings(remembered: dict[str, Any], effective: dict[str, Any], path: str) -> ChangedSettings | None:
    """The callback for a resumed run; None if nothing has changed.

    Args:
        remembered: the model's section of the config that the checkpoint was written with.
        effective: the model's section of the config in force.
        path: the checkpoint.

    Raises:
        InputError: another class, which the state in the checkpoint does not fit.
    """
    changes: dict[str, dict[str, tuple[Any, Any]]] = {}
    for section in ("optimizer", "lr_scheduler"):
        old, new = (model.get("init_args", {}).get(section) for model in (remembered, effective))
        if not isinstance(old, dict) or not isinstance(new, dict):
            continue
        if old.get("class_path") != new.get("class_path"):
            raise InputError(
                f"model.{section}={new.get('class_path')} cannot go on from ckpt_path={path!r}, which holds the state "
                f"of {old.get('class_path')}; keep that class, or start from the weights alone with --model.init_from."
            )
        before, after = old.get("init_args", {}), new.get("init_args", {})
        changes[section] = {k: (before[k], after[k]) for k in before if k in after and before[k] != after[k]}
    if not any(changes.values()):
        return None
    return ChangedSettings(changes.get("optimizer", {}), changes.get("lr_scheduler", {}))


def _same(value: Any, other: Any) -> bool:
    return (list(value) if isinstance(value, tuple) else value) == (list(other) if isinstance(other, tuple) else other)
