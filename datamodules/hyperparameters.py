"""What a checkpoint remembers of a data module."""

import os
from typing import Any

from lightning.pytorch import LightningDataModule

PLAIN = (type(None), bool, int, float, str)


def remember_arguments(data: LightningDataModule) -> None:
    """Keeps the arguments that the constructor was called with as hyperparameters; to be called within it.

    Paths are kept as text. Arguments of other types than plain values, and containers of them, are left out: a
    checkpoint that held them could not be loaded safely.
    """
    data.save_hyperparameters(logger=False)
    for name, value in list(data.hparams.items()):
        if isinstance(value, os.PathLike):
            data.hparams[name] = os.fspath(value)
        elif not _is_plain(value):
            del data.hparams[name]


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, (*value, *value.values())))
    return isinstance(value, PLAIN)
