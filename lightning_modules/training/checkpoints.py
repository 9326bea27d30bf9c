"""Checkpoint files: written as a whole, and read for what they remember of the run they are from."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from packaging.version import InvalidVersion, Version

from bnfree import checksums, file_bounds, trust
from bnfree.errors import InputError
from bnfree.files import whole_file
from bnfree.import_names import class_paths_of_today
from bnfree.lightning_modules.training.messages import say
from bnfree.lightning_modules.training.run_directory import CHECKPOINTS
from bnfree.names import did_you_mean
from bnfree.state_dicts import is_safetensors
from bnfree.tickets import is_ticket
from bnfree.tickets.ticket_file import CONFIG_KEYS

LAST_GOOD = "last-good"

VERSION_KEY = "pytorch-lightning_version"


def read_checkpoint(path: str, weights_only: bool = True) -> dict[str, Any]:
    """Reads a checkpoint to the CPU.

    Raises:
        InputError: no such file, damaged, or not a checkpoint of a Trainer.
    """
    file = Path(path)
    if not file.is_file():
        kind = "is a directory" if file.is_dir() else "does not exist"
        folder = file if file.is_dir() else file.parent
        found = sorted(str(p) for p in (*folder.glob("*.ckpt"), *folder.glob("checkpoints/*.ckpt")))
        remedy = did_you_mean(path, found) or f"give a checkpoint file{f', such as {found[0]}' if found else ''}."
        raise InputError(f"ckpt_path={path!r} {kind}; {remedy}")
    if is_safetensors(file):
        raise InputError(
            f"ckpt_path={path!r} is a file of safetensors, such as the packed networks of bnfree export, and no "
            "checkpoint; give the checkpoint that it was made of. Packed networks go to predict, test and bench, and a "
            "training starts from one with --model.init_from."
        )
    try:
        checksums.check(file, f"ckpt_path={path!r}")
        if weights_only:
            file_bounds.check_archive(file, f"ckpt_path={path!r}")
        content: Any = torch.load(file, map_location="cpu", weights_only=weights_only)
        if weights_only:
            file_bounds.check_tensors(content, f"ckpt_path={path!r}")
    except InputError:
        raise
    except Exception as error:
        # Damaged archives end in many exception types, all of which mean the same to the user.
        if weights_only and isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(file):
            raise InputError(
                f"ckpt_path={path!r} holds objects of other types than tensors and plain values; if you trust its "
                "source, add --weights_only=false."
            ) from error
        raise InputError(
            f"ckpt_path={path!r} cannot be read as a checkpoint: it is damaged or incomplete "
            f"({type(error).__name__}); {_other_than(file)}"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise InputError(
            f"ckpt_path={path!r} holds no training state, only weights or something else; give a checkpoint that "
            "`bnfree fit` wrote, or start from its weights with --model.init_from."
        )
    try:
        # Lightning compares it with its own, and says nothing that helps.
        Version(content.get(VERSION_KEY, "0"))
    except (InvalidVersion, TypeError) as error:
        raise InputError(
            f"ckpt_path={path!r} was written by no release of Lightning; give an undamaged checkpoint."
        ) from error
    return content


def _other_than(file: Path) -> str:
    run = file.parent.parent
    if file.parent.name == CHECKPOINTS and any(other != file for other in file.parent.glob("*.ckpt")):
        return f"give another checkpoint, or --run_dir={run} --ckpt_path={LAST_GOOD} for the newest one that is whole."
    return "give another checkpoint."


def newest_whole_checkpoint(directory: Path) -> Path:
    """The checkpoint of a run with most steps among those that can be read and gone on from.

    Args:
        directory: the run directory; its damaged checkpoints are named in a line each.

    Raises:
        InputError: there is none.
    """
    steps: dict[Path, int] = {}
    for file in sorted((directory / CHECKPOINTS).glob("*.ckpt")):
        try:
            content = read_checkpoint(str(file))
            check_resumable(content, str(file))
        except InputError as error:
            say(f"Passed over: {error}")
        else:
            steps[file] = int(content.get("global_step", 0))
    if not steps:
        raise InputError(f"ckpt_path={LAST_GOOD!r}: {str(directory)!r} has no checkpoint that a run can go on from.")
    # Of two with as many steps, the last one knows of the best.
    newest = max(steps, key=lambda file: (steps[file], file.name == "last.ckpt"))
    say(f"Going on from {newest}, step {steps[newest]}.")
    return newest


def remembered_config(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The `model` and `data` sections that a checkpoint was written with, as far as it holds them.

    To be shown and compared; what is built from them, `trust.check` looks at first. Classes of other packages that this
    user's bnfree has signed in the file are approved.

    Raises:
        InputError: sections that are no plain values of a config.
    """
    sections = {}
    for section, key in zip(("model", "data"), CONFIG_KEYS, strict=True):
        content = checkpoint.get(key)
        if not isinstance(content, Mapping):
            continue
        trust.approve_signed(content, checkpoint.get(trust.KEY))
        trust.check_size(content, f"{key} of the file")
        remembered = class_paths_of_today(dict(content))
        values = {str(k): v for k, v in remembered.items() if k != "_instantiator"}
        class_path = values.pop("_class_path", None)
        if class_path is not None:
            sections[section] = {"class_path": class_path, "init_args": values}
    return sections


def as_argument(sections: Mapping[str, Any], given: str) -> str:
    """Sections from a file as text, which `--config` takes in place of a file name.

    Args:
        sections: what `remembered_config` gives.
        given: how the user gave the file, the subject of the messages.

    Raises:
        InputError: they name classes that a file may not name, or are no plain values.
    """
    trust.check(sections, given)
    try:
        return json.dumps(sections)
    except (TypeError, ValueError) as error:
        raise InputError(f"{given} describes no network: {error}; describe it with a --config of your own.") from error


def differences(remembered: Any, effective: Any, name: str) -> Iterator[str]:
    """One line for each value that is now another than a checkpoint remembers.

    Args:
        remembered: value or nested mapping from the checkpoint.
        effective: the same of the config in force.
        name: dotted name of the two.
    """
    if isinstance(remembered, dict) and isinstance(effective, dict):
        changed_class = remembered.get("class_path") != effective.get("class_path")
        for key in ("class_path",) if changed_class else remembered:
            if key in effective:
                yield from differences(remembered[key], effective[key], f"{name}.{key}")
    elif remembered != effective:
        yield f"{name.replace('.init_args', '')}: {effective} (the checkpoint was written with {remembered})"


def check_restorable(checkpoint: Mapping[str, Any], path: str) -> None:
    """Refuses what Lightning cannot restore a module from; tickets are read without it.

    Raises:
        InputError: it does not say which release of Lightning has written it.
    """
    if VERSION_KEY not in checkpoint and not is_ticket(checkpoint):
        raise InputError(
            f"ckpt_path={path!r} has no entry {VERSION_KEY!r}, so that Lightning cannot restore it; give a checkpoint "
            "of a Trainer, or start from its weights with --model.init_from."
        )


def check_resumable(checkpoint: dict[str, Any], path: str) -> None:
    """Refuses to resume from a checkpoint without the states of a run.

    Raises:
        InputError: it holds weights only.
    """
    if "optimizer_states" not in checkpoint or "loops" not in checkpoint:
        raise InputError(
            f"ckpt_path={path!r} holds weights but no optimizer state to resume from; start from its weights with "
            "--model.init_from."
        )


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a local checkpoint beside its place and renames it.

    Lightning writes into the system's temporary directory and moves the file. Where that is another file system, as on
    most clusters, moving is copying, and a process that is killed meanwhile leaves a truncated checkpoint in place of
    the good one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Saves a checkpoint; addresses other than local paths are left to Lightning.

        Args:
            checkpoint: what to save.
            path: where.
            storage_options: not used, as in Lightning's own.

        Raises:
            MachineError: the disk is full.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        signed = trust.signatures([checkpoint.get(key) for key in CONFIG_KEYS])
        with whole_file(path, _size(checkpoint)) as unfinished:
            checksums.save({**checkpoint, trust.KEY: signed} if signed else checkpoint, unfinished)


def _size(content: Any) -> int:
    """Bytes of the tensors in a checkpoint."""
    if isinstance(content, torch.Tensor):
        return content.nbytes
    if isinstance(content, Mapping):
        return sum(_size(value) for value in content.values())
    return sum(_size(value) for value in content) if isinstance(content, list | tuple) else 0
