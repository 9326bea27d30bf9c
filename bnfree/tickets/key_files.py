"""Files with secrets: an owner's key, and what a locked ticket lacks. Mode 0600, and never printed."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

import torch

from bnfree.errors import InputError
from bnfree.files import whole_file
from bnfree.state_dicts import read_checkpoint_file
from bnfree.tickets import TicketKey, pack_masks, unpack_masks
from bnfree.tickets.keyed import MIN_KEY_LENGTH

FORMAT, VERSION = "bnfree ticket key", 1
COMMENT = "# An owner's key of bnfree tickets. Whoever reads it can claim what it signs: keep it, and keep it secret.\n"


def write_secret(path: Path, content: bytes) -> None:
    """Writes a file that nobody but its owner can read, at no moment; it is there as a whole or not at all."""
    with whole_file(path) as unfinished:
        unfinished.unlink(missing_ok=True)
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def write_owner_key(key: str, path: Path) -> None:
    """Writes an owner's key."""
    write_secret(path, f"{COMMENT}{key}\n".encode())


def read_owner_key(path: str | Path) -> str:
    """Reads an owner's key: the one line of a text file that is no comment.

    Warns on stderr where others can read the file. No message contains anything of the key.

    Raises:
        InputError: no such file, one of another kind, or a key that could be guessed.
    """
    given, file = _existing(path)
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{given} is no owner's key; give a file that bnfree ticket key new wrote.") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if len(keys) != 1 or len(keys[0]) < MIN_KEY_LENGTH:
        raise InputError(
            f"{given} must hold one line of at least {MIN_KEY_LENGTH} characters; make one with bnfree ticket key new."
        )
    _warn_of_readers(given, file)
    return keys[0]


def write_ticket_key(key: TicketKey, path: Path) -> None:
    """Writes the key of a locked ticket."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "masks": pack_masks(key.masks),
        "found": key.found,
        "rewind": key.rewind,
        "whole": key.whole,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_secret(path, buffer.getvalue())


def read_ticket_key(path: str | Path) -> TicketKey:
    """Reads the key of a locked ticket; warns on stderr where others can read the file.

    Raises:
        InputError: no such file, or one of another kind or version.
    """
    given, file = _existing(path)
    content: Any = read_checkpoint_file(file, given)
    # A tensor in their place would give no answer.
    found = [content.get(key) for key in ("format", "version")] if isinstance(content, dict) else []
    if not all(isinstance(value, str | int) for value in found) or found != [FORMAT, VERSION]:
        raise InputError(f"{given} is not the key of a locked ticket; give a file that bnfree ticket key split wrote.")
    try:
        key = TicketKey(unpack_masks(content["masks"]), content["found"], content["rewind"], content["whole"])
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{given} is damaged ({type(error).__name__}); give an undamaged copy.") from error
    _warn_of_readers(given, file)
    return key


def _existing(path: str | Path) -> tuple[str, Path]:
    """What messages call a file with a key, and the file."""
    given, file = f"key={str(path)!r}", Path(path).expanduser()
    if not file.is_file():
        raise InputError(f"{given} is not a file; give one with a key, as bnfree ticket key new writes for an owner.")
    return given, file


def _warn_of_readers(given: str, file: Path) -> None:
    if os.name == "posix" and file.stat().st_mode & 0o077:
        mode = f"{file.stat().st_mode & 0o777:o}"
        print(f"bnfree: warning: {given} can be read by others (mode {mode}); chmod 600 {file}", file=sys.stderr)
