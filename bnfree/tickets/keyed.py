"""What an owner's key decides: in which kernels the mark of a layer lies, and what it says there.

Everything comes from SHA-256 and SHAKE-256 of the key, the message and the layer, so that a mark can be read on any
machine and with any version of PyTorch, whose random generators promise no such thing.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

from bnfree.errors import InputError

MIN_KEY_LENGTH = 16


def new_key() -> str:
    """A new secret key of 256 random bits, as 64 hexadecimal digits. Whoever has it can claim what it signs."""
    return secrets.token_hex(32)


def check_key(key: str) -> None:
    """Refuses a key that can be guessed.

    Raises:
        InputError: shorter than 16 characters.
    """
    if len(key) < MIN_KEY_LENGTH:
        # The key itself is a secret, which is not to end up in a log.
        raise InputError(
            f"key has {len(key)} characters, so that it could be guessed; give at least {MIN_KEY_LENGTH}, best those "
            "of new_key()."
        )


def key_digest(key: str, purpose: str) -> str:
    """SHA-256 HMAC of a purpose under the key, in hexadecimal; it says nothing about the key."""
    return hmac.new(key.encode(), purpose.encode(), hashlib.sha256).hexdigest()


def mark_of(key: str, message: str, name: str, filters: int, channels: int, count: int) -> tuple[list[int], list[bool]]:
    """Where the mark of one layer lies, and what it says.

    Args:
        key: the owner's secret.
        message: what is signed.
        name: name of the layer.
        filters: its output filters O.
        channels: input channels of each filter I.
        count: number of kernels to mark.

    Returns:
        Distinct indices of kernels, filter * I + channel, and for each whether a weight survives there.
    """
    secret = bytes.fromhex(key_digest(key, f"bnfree mark:{len(message)}:{message}:{name}:{filters}x{channels}"))
    kernels = filters * channels
    # 64 bits for each draw leave no bias to speak of. Most draws give a new kernel, and a longer output of SHAKE-256
    # begins with the shorter one.
    chosen: dict[int, None] = {}
    draws = 2 * count + 16
    while len(chosen) < count:
        stream = hashlib.shake_256(secret + b"kernels").digest(8 * draws)
        chosen = dict.fromkeys(int.from_bytes(stream[i : i + 8], "little") % kernels for i in range(0, 8 * draws, 8))
        draws *= 2
    stream = hashlib.shake_256(secret + b"payload").digest(-(-count // 8))
    return list(chosen)[:count], [bool(stream[i // 8] >> i % 8 & 1) for i in range(count)]
