"""Pretrained packed networks that come with bnfree, by name."""

from __future__ import annotations

from pathlib import Path

from bnfree.errors import InputError
from bnfree.import_names import folder

FOLDER = folder("pretrained")


def pretrained_names() -> list[str]:
    """Names of the networks, sorted; what each is: the table in `pretrained/README.md`."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def pretrained_path(name: str) -> Path:
    """The file of a network, for `load`.

    Args:
        name: its name, or the beginning of it that no other has.

    Raises:
        InputError: no network of that name, or several.
    """
    names = pretrained_names()
    found = [name] if name in names else [known for known in names if name and known.startswith(name)]
    if len(found) == 1:
        return FOLDER / f"{found[0]}.safetensors"
    said = f"could be {' or '.join(found)}" if found else "is neither a file nor a pretrained network"
    choice = f"a packed file, or one of {', '.join(names)}" if names else "a packed file"
    raise InputError(f"model={name!r} {said}; give {choice}.")
