"""Which packed networks have a name: files `registry.json` of names, places, sizes and checksums.

    {"version": 1, "networks": {"cifar10_w64": {"url": "https://...", "sha256": "...", "size": 1500000}}}

An entry has the `file`, beside the registry or somewhere else, or the `url` that it is downloaded from, or both. bnfree
comes with one registry, in `pretrained/`; `bnfree export --register` writes another one for this user, at
`$XDG_DATA_HOME/bnfree/registry.json` (by default `~/.local/share/bnfree/registry.json`).
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnfree.errors import InputError
from bnfree.files import whole_file

FILE = "registry.json"
VERSION = 1
# Far more than any registry has: a name and a checksum take some 200 bytes.
LARGEST = 1 << 22
LARGEST_NETWORK = 1 << 34
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Entry:
    """A packed network that has a name."""

    name: str
    sha256: str
    """Of the file, in hexadecimal digits."""
    size: int
    """Bytes of the file."""
    file: Path | None = None
    """The file on this machine, if the registry names one."""
    url: str | None = None
    """Where it is downloaded from, https or http; None: it is not."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise InputError(
                f"name={str(self.name)[:100]!r} must begin with a letter or digit and have at most 100 letters, "
                "digits, dots, - and _."
            )
        if not isinstance(self.sha256, str) or not _SHA256.fullmatch(self.sha256):
            raise InputError(f"sha256={str(self.sha256)[:100]!r} of {self.name} must be 64 hexadecimal digits.")
        if type(self.size) is not int or not 0 < self.size <= LARGEST_NETWORK:
            raise InputError(f"size={str(self.size)[:100]} of {self.name} must be the bytes of its file.")
        if self.url is not None and not (
            isinstance(self.url, str) and self.url.startswith(("https://", "http://")) and self.url.isprintable()
        ):
            raise InputError(f"url={str(self.url)[:100]!r} of {self.name} must begin with https:// or http://.")
        if self.file is None and self.url is None:
            raise InputError(f"{self.name} has neither a file nor a url; give one.")


def users_registry() -> Path:
    """The registry of this user, which need not be there."""
    return user_folder("XDG_DATA_HOME", ".local/share") / FILE


def user_folder(variable: str, place: str) -> Path:
    """A folder of bnfree's own in the user's home.

    Args:
        variable: environment variable that says the folder above it.
        place: that folder below the home, without the variable.

    Raises:
        InputError: the process has no home.
    """
    configured = Path(os.environ.get(variable, ""))
    if configured.is_absolute():
        return configured / "bnfree"
    try:
        return Path.home() / place / "bnfree"
    except RuntimeError:
        raise InputError(f"{variable} must be a folder where the user has no home; set it.") from None


def read_registry(path: Path) -> dict[str, Entry]:
    """The entries of a file by name; none where it is not there.

    Raises:
        InputError: a file that is no registry.
    """
    if not path.is_file():
        return {}
    if path.stat().st_size > LARGEST:
        raise InputError(f"{str(path)!r} is no registry of networks: it has more than {LARGEST} bytes.")
    try:
        content = json.loads(path.read_bytes())
        version, networks = content["version"], content["networks"]
        if version != VERSION:
            raise InputError(f"{str(path)!r} has version {str(version)[:20]}, this bnfree reads {VERSION}; update it.")
        return {name: _entry(name, values, path) for name, values in networks.items()}
    except InputError as error:
        raise InputError(f"{str(path)!r}: {error}") from error
    # Whatever is wrong with it, it is none.
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{str(path)!r} is no registry of networks ({type(error).__name__}); remove it.") from error


def add_entry(path: Path, entry: Entry, replace: bool = False) -> None:
    """Writes an entry into a registry, which is made where there is none.

    Args:
        path: the registry; a reader sees the old file or the new one.
        entry: its file is written relative to the registry if it lies below it.
        replace: also where the name stands for another file.

    Raises:
        InputError: the name is taken, or the file is no registry.
    """
    entries = read_registry(path)
    check_free(entries, entry.name, path, replace)
    entries[entry.name] = entry
    written = {name: _values(entries[name], path.absolute().parent) for name in sorted(entries)}
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps({"version": VERSION, "networks": written}, indent=2) + "\n", encoding="utf-8")


def check_free(entries: dict[str, Entry], name: str, path: Path, replace: bool) -> None:
    """Refuses a name that a registry has.

    Raises:
        InputError: it has, and it is not to be replaced.
    """
    if name in entries and not replace:
        raise InputError(f"register={name!r} is taken in {str(path)!r}; give another name, or --overwrite.")


def _entry(name: str, values: Any, path: Path) -> Entry:
    file = values.get("file")
    if file is not None and (not isinstance(file, str) or "\0" in file):
        raise InputError(f"file of {str(name)[:100]} must be a path.")
    place = None if file is None else path.absolute().parent / Path(file).expanduser()
    return Entry(name, values["sha256"], values["size"], place, values.get("url"))


def _values(entry: Entry, folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if entry.file is not None:
        place = entry.file.absolute()
        values["file"] = str(place.relative_to(folder)) if place.is_relative_to(folder) else str(place)
    if entry.url is not None:
        values["url"] = entry.url
    return {**values, "sha256": entry.sha256, "size": entry.size}
