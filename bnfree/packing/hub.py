"""Packed files and checkpoints on the Hugging Face hub, through its own library (`pip install 'bnfree[hub]'`).

`hf://user/repo` means `network.safetensors` in that repository, `hf://user/repo/checkpoint.ckpt` another file of it,
and `hf://user/repo@revision` a branch, tag or commit. Files come into the library's own cache, from which they are
taken without a connection, too. What is in them is read as every file of a stranger is: nothing of it is run.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bnfree.errors import InputError

SCHEME = "hf://"
PACKED_NAME = "network.safetensors"
_PLACE = re.compile(r"hf://([\w.-]+/[\w.-]+?)(?:@([\w./-]+?))?(?:/((?:[\w.-]+/)*[\w.-]+))?")


def is_hub(given: str) -> bool:
    """Whether a word means a file on the hub."""
    return given.startswith(SCHEME)


def pull(given: str) -> Path:
    """The file of a place on the hub, downloaded unless it is in the library's cache.

    Args:
        given: `hf://user/repo`, `hf://user/repo/file`, either with `@revision` behind the repository.

    Raises:
        InputError: no such place, no connection to it, or the library is not installed.
    """
    place = _PLACE.fullmatch(given)
    if place is None or ".." in given:
        raise InputError(f"{given!r} must be hf://user/repo or hf://user/repo/file.")
    library = _library(given)
    repo, revision, file = place.groups()
    try:
        return Path(library.hf_hub_download(repo, file or PACKED_NAME, revision=revision))
    # The library raises errors of its own, of httpx and of the system for what is missing or cannot be reached.
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0][:200]
        raise InputError(
            f"{given!r} cannot be pulled from the hub ({type(error).__name__}: {first}); check name and connection, or "
            "give a file."
        ) from error


def push(files: Mapping[str, Path], given: str, private: bool = False) -> str:
    """Uploads files in one commit; the repository is made where there is none.

    Args:
        files: what they are called there, and where they lie here; `network.safetensors` is what `hf://user/repo`
            means, and `README.md` is the card.
        given: `hf://user/repo`.
        private: whether a new repository is private.

    Returns:
        The address of the commit.

    Raises:
        InputError: no such place, the hub refuses, or the library is not installed.
    """
    place = _PLACE.fullmatch(given)
    if place is None or place[2] or place[3]:
        raise InputError(f"{given!r} must be hf://user/repo.")
    missing = [str(path) for path in files.values() if not path.is_file()]
    if missing:
        raise InputError(f"{missing[0]!r} is not a file; give files to push.")
    library = _library(given)
    try:
        api = library.HfApi()
        api.create_repo(place[1], private=private, exist_ok=True)
        operations = [library.CommitOperationAdd(name, str(path)) for name, path in files.items()]
        return str(api.create_commit(place[1], operations, commit_message="Network of bnfree").commit_url)
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0][:200]
        raise InputError(
            f"{given!r} cannot be pushed to ({type(error).__name__}: {first}); log in with `hf auth login`, and check "
            "name and connection."
        ) from error


def _library(given: str) -> Any:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise InputError(f"{given!r} needs huggingface_hub, which is not installed: pip install 'bnfree[hub]'.")
    import huggingface_hub

    return huggingface_hub
