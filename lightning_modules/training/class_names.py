"""Are the classes of the data those that a network was trained on?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from bnfree.errors import InputError

OPTION = "allow_other_classes"
KEY = "class_names"
# Sections of a checkpoint that are no state of a data module.
_OTHERS = {"state_dict", "hyper_parameters", "datamodule_hyper_parameters", "callbacks", "loops"}


def real_names(names: Any) -> list[str] | None:
    """The names of the classes 0, 1, ...; None where nobody names them, or only numbers do."""
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return None
    return None if not names or list(names) == [str(number) for number in range(len(names))] else list(names)


def remembered_names(checkpoint: Any) -> list[str] | None:
    """The class names that a checkpoint was trained on; None where it remembers none, as before they were kept."""
    if not isinstance(checkpoint, Mapping):
        return None
    states = [value for key, value in checkpoint.items() if key not in _OTHERS and isinstance(value, Mapping)]
    return real_names(next((state[KEY] for state in (checkpoint, *states) if KEY in state), None))


def names_in_file(path: Any) -> list[str] | None:
    """`remembered_names` of a file, without reading its weights; None also where it is no checkpoint."""
    try:
        return remembered_names(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    # What is wrong with the file, and it can be anything, is for those to say who want its weights.
    except Exception:
        return None


def check_class_names(trained: Any, present: Any, source: str, data: str, allowed: bool) -> None:
    """Refuses data whose classes are called otherwise, or come in another order.

    Args:
        trained: names that the network was trained on; None or mere numbers: not known, and nothing is compared.
        present: names of the classes of the data; likewise.
        source: what the network comes from, for the message.
        data: what the data are, for the message.
        allowed: the user knows.

    Raises:
        InputError: they differ; the first difference is named.
    """
    before, now = real_names(trained), real_names(present)
    if allowed or before is None or now is None or before == now:
        return
    pairs = enumerate(zip_longest(before, now))
    number, (old, new) = next((number, pair) for number, pair in pairs if pair[0] != pair[1])
    was, is_now = (repr(name) if name is not None else "none" for name in (old, new))
    raise InputError(
        f"{source} was trained on other classes than those of {data}: class {number} was {was} and is {is_now} here; "
        f"give data with the same classes, or --{OPTION} where they mean the same, or are meant to be others."
    )


class ClassNames(Callback):
    """Changes nothing: compares the class names of data and checkpoints once data are set up, and stores them.

    Data modules of this project store them themselves, in every Trainer; those of others get them stored here.

    Args:
        checkpoint: what is resumed or evaluated; empty for a fresh fit.
        path: its file.
        allowed: store, and do not compare.
    """

    def __init__(self, checkpoint: Mapping[str, Any], path: str | None, allowed: bool) -> None:
        self.remembered, self.path, self.allowed = remembered_names(checkpoint), path, allowed

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compares.

        Raises:
            InputError: the classes are others.
        """
        data = getattr(trainer, "datamodule", None)
        present = real_names(getattr(data, KEY, None))
        if self.allowed or present is None:
            return
        name = f"data={type(data).__name__}"
        check_class_names(self.remembered, present, f"ckpt_path={self.path!r}", name, allowed=False)
        if stage == "fit" and self.path is None:
            for argument, path in _files_behind(pl_module):
                check_class_names(names_in_file(path), present, f"{argument}={path!r}", name, allowed=False)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Stores the names where the data module has not."""
        present = real_names(getattr(getattr(trainer, "datamodule", None), KEY, None))
        if present is not None and remembered_names(checkpoint) is None:
            checkpoint[KEY] = present


def _files_behind(module: LightningModule) -> Sequence[tuple[str, str]]:
    """Argument and path of the checkpoints whose classes a module takes over in a fresh fit."""
    # A new head has classes of its own.
    kept = None if getattr(module, "replace_head", False) else getattr(module, "init_from", None)
    found = [("init_from", kept)]
    found += [("teacher.weights", getattr(teacher, "weights", None)) for teacher in getattr(module, "teachers", ())]
    return [(argument, str(path)) for argument, path in found if path is not None]
