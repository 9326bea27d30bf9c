"""Optimizer settings that the user has changed since the checkpoint a run goes on from."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

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
        for optimizer in trainer.optimizers:
            _check_state(optimizer, self.optimizer)
        for name, (old, new) in self.optimizer.items():
            groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
            if name == "lr" and old:
                multiply_learning_rates(trainer.optimizers, schedulers, new / old)
            elif name == "lr":
                # No factor leads from 0 to another rate.
                for group in groups:
                    group["lr"] = group["initial_lr"] = new
            else:
                for group in groups:
                    if _same(group.get(name), old):
                        group[name] = tuple(new) if isinstance(new, list) else new
        if hasattr(pl_module, "schedule_is_stale"):
            # It makes its schedule anew, which holds for rates that a schedule has from 0, too.
            module: Any = pl_module
            module.schedule_is_stale = bool(self.lr_scheduler) or self.optimizer.get("lr", (1,))[0] == 0
            return
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
    groups_then, groups_now = (m.get("init_args", {}).get("weight_decay_on") for m in (remembered, effective))
    if groups_then is not None and groups_then != groups_now:
        raise InputError(
            f"model.weight_decay_on={groups_now} cannot go on from ckpt_path={path!r}, whose optimizer has the groups "
            f"of {groups_then!r}; keep that, or start from the weights alone with --model.init_from."
        )
    for section in ("optimizer", "lr_scheduler"):
        old, new = (model.get("init_args", {}).get(section) for model in (remembered, effective))
        if not isinstance(old, dict) and not isinstance(new, dict):
            continue
        if _class_path(old) != _class_path(new):
            raise InputError(
                f"model.{section}={_class_path(new)} cannot go on from ckpt_path={path!r}, which holds the state of "
                f"{_class_path(old)}; keep that class, or start from the weights alone with --model.init_from."
            )
        before, after = old.get("init_args", {}), new.get("init_args", {})
        changes[section] = {k: (before[k], after[k]) for k in before if k in after and before[k] != after[k]}
    if not any(changes.values()):
        return None
    return ChangedSettings(changes.get("optimizer", {}), changes.get("lr_scheduler", {}))


def _check_state(optimizer: Optimizer, changes: dict[str, tuple[Any, Any]]) -> None:
    """Refuses changed arguments for which an optimizer keeps more state than was restored, such as `amsgrad`.

    Raises:
        InputError: the first argument for which something is missing.
    """
    states = [state for state in optimizer.state.values() if state]
    if not states:
        return
    for name, (old, new) in changes.items():
        parameter = torch.zeros(1, requires_grad=True)
        # A tensor, such as fused and capturable ones have, is no setting of the user.
        settings = {key: value for key, value in optimizer.defaults.items() if key not in ("fused", "foreach")}
        try:
            trial = type(optimizer)([parameter], **{**settings, name: new})
            parameter.grad = torch.ones(1)
            trial.step()
        except (TypeError, ValueError, RuntimeError, KeyError):
            # What is wrong with the value itself has been said when the optimizer was made.
            continue
        missing = [key for key, value in trial.state[parameter].items() if value is not None and key not in states[0]]
        if missing and name in settings:
            raise InputError(
                f"model.optimizer.{name}={new} needs {', '.join(missing)} of every weight, which a checkpoint trained "
                f"with {name}={old} does not have; keep {name}={old}, or start from the weights alone with "
                "--model.init_from."
            )


def _same(value: Any, other: Any) -> bool:
    return (list(value) if isinstance(value, tuple) else value) == (list(other) if isinstance(other, tuple) else other)


def _class_path(section: Any) -> str | None:
    """The class that a section names; class paths of earlier files are those of today. Nothing is imported."""
    path = section.get("class_path") if isinstance(section, dict) else None
    if not isinstance(path, str):
        return None
    return path.removeprefix("bnfree.").replace("lightning_modules.modules.", "lightning_modules.")
