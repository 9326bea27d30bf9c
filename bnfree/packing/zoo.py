"""Pretrained packed networks by name: those that come with bnfree, and those that a registry knows."""

from __future__ import annotations

from pathlib import Path

from bnfree.errors import InputError
from bnfree.import_names import folder
from bnfree.packing.download import fetch
from bnfree.packing.registry import FILE, Entry, read_registry, users_registry

FOLDER = folder("pretrained")
SUFFIX = ".safetensors"


def pretrained_names() -> list[str]:
    """Names of the networks, sorted; what each is: its card in `pretrained/`, or beside the user's registry.

    Raises:
        InputError: a registry that cannot be read.
    """
    return sorted({path.stem for path in FOLDER.glob(f"*{SUFFIX}")} | set(_entries()))


def pretrained_path(name: str) -> Path:
    """The file of a network, for `load`; downloaded, if it is not on this machine yet.

    Args:
        name: its name, or the beginning of it that no other has.

    Raises:
        InputError: no network of that name, or several; one that cannot be downloaded.
    """
    name = full_name(name)
    entry, own = _entries().get(name), FOLDER / f"{name}{SUFFIX}"
    if entry is None or own.is_file():
        return own
    if entry.file is not None and entry.file.is_file():
        return entry.file
    if entry.url is None:
        raise InputError(f"model={name!r} is registered as {str(entry.file)!r}, which is not there; register it anew.")
    return fetch(entry)


def full_name(name: str) -> str:
    """The name that is meant; nothing is downloaded.

    Args:
        name: a network's name, or the beginning of it that no other has.

    Raises:
        InputError: no network of that name, or several.
    """
    names = pretrained_names()
    found = [name] if name in names else [known for known in names if name and known.startswith(name)]
    if len(found) == 1:
        return found[0]
    said = f"could be {' or '.join(found)}" if found else "is neither a file nor a pretrained network"
    choice = f"a packed file, or one of {', '.join(names)}" if names else "a packed file"
    raise InputError(f"model={name!r} {said}; give {choice}.")


def _entries() -> dict[str, Entry]:
    return {**read_registry(FOLDER / FILE), **read_registry(users_registry())}
