"""A key of this user on this home, with which files are told from those of others.

32 random bytes in `$XDG_CONFIG_HOME/bnfree/key` (by default `~/.config/bnfree/key`), readable by their owner alone and
made when something is first signed. Where no file can be written there is no key, and nothing is signed.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path

SIZE = 32


def place() -> Path | None:
    """Where the key lies; None where the process has no home."""
    configured = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    if configured.is_absolute():
        return configured / "bnfree" / "key"
    try:
        return Path.home() / ".config" / "bnfree" / "key"
    except RuntimeError:
        return None


def signature(message: bytes, create: bool = False) -> str | None:
    """HMAC-SHA256 of a message under the user's key, in hexadecimal digits; None without a key.

    Args:
        message: what is signed.
        create: make a key where there is none.
    """
    key = _read() or (_create() if create else None)
    return None if key is None else hmac.new(key, message, hashlib.sha256).hexdigest()


def _read() -> bytes | None:
    path = place()
    if path is None:
        return None
    try:
        # What belongs to others, or others can read, proves nothing.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            own = not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & 0o077)
            content = file.read(SIZE + 1) if own and stat.S_ISREG(status.st_mode) else b""
    except OSError:
        return None
    return content if len(content) == SIZE else None


def _create() -> bytes | None:
    path = place()
    if path is None:
        return None
    fresh = path.with_name(f".key.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(SIZE))
            # Of two processes at once the first one's key is both's: a link never replaces a file.
            os.link(fresh, path)
        finally:
            fresh.unlink()
    except FileExistsError:
        pass
    except OSError:
        return None
    return _read()
