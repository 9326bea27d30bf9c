"""What a ticket file remembers of the run that wrote it: enough to build its network without a config."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer

from bnfree.tickets.ticket_file import CONFIG_KEYS, NAMES_KEY


def remembered_config(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """The hyper-parameters of model and data under the keys that a checkpoint has them under, and the class names."""
    holders: dict[str, Any] = dict(zip(CONFIG_KEYS, (pl_module, getattr(trainer, "datamodule", None)), strict=True))
    names = getattr(getattr(trainer, "datamodule", None), NAMES_KEY, None)
    config = {key: dict(holder.hparams) for key, holder in holders.items() if getattr(holder, "hparams", None)}
    return config if names is None else {**config, NAMES_KEY: [str(name) for name in names]}
