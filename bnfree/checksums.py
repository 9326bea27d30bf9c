"""Files of torch.save with a checksum of the whole file at their end.

A file of torch.save is a zip archive, and torch does not look at the checksums of its parts: a flipped bit in a tensor
is loaded as it is. The SHA-256 of the archive stands in the archive's comment, which other readers pass over.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from bnfree.errors import InputError

_MARK = b"bnfree sha256 "
_LENGTH = len(_MARK) + 64
# The last record of a zip archive, which ends in the length of the comment.
_END, _END_SIZE = b"PK\x05\x06", 22


class _Hashing:
    """A file that is written to and hashed on the way, so that nothing is read again."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest, self.tail = file, hashlib.sha256(), b""

    def write(self, data: Any) -> int:
        """Writes bytes or a buffer of them; the last two are held back."""
        view = memoryview(data).cast("B")
        if len(view) < 2:
            both = self.tail + bytes(view)
            self._put(memoryview(both[:-2]))
            self.tail = both[-2:]
        else:
            self._put(memoryview(self.tail))
            self._put(view[:-2])
            self.tail = bytes(view[-2:])
        return len(view)

    def _put(self, view: memoryview) -> None:
        self.digest.update(view)
        self.file.write(view)

    def flush(self) -> None:
        """Nothing: the file is closed once all is written."""


def value_bytes(tensor: Tensor) -> bytes:
    """The bytes of a tensor's values in the order of its indices, whatever its memory format, dtype and device."""
    # `contiguous` returns a tensor as it is where the strides of dimensions of size 1 alone are in the way, as in the
    # weight of a 1x1 convolution with channels last, and `view` refuses those.
    values = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return values.flatten().view(torch.uint8).numpy().tobytes()


def save(content: Any, path: str | os.PathLike[str]) -> None:
    """Like `torch.save`, with a checksum; `check` compares it, and torch.load reads the file as any other.

    Args:
        content: what to save.
        path: the file.

    Raises:
        OSError: it cannot be written.
    """
    with Path(path).open("wb") as file:
        writer = _Hashing(file)
        torch.save(content, writer)  # type: ignore[arg-type]
        # The length of the comment in place of zero.
        writer._put(memoryview(_LENGTH.to_bytes(2, "little")))
        file.write(_MARK + writer.digest.hexdigest().encode())


def check(path: str | os.PathLike[str], given: str) -> None:
    """Compares a file's content with the checksum at its end; a file without one, as it was before, passes.

    Args:
        path: the file.
        given: how the user gave it, the subject of the message.

    Raises:
        InputError: they differ.
        OSError: it cannot be read.
    """
    with Path(path).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size < _END_SIZE + _LENGTH:
            return
        file.seek(-_LENGTH - _END_SIZE, os.SEEK_END)
        end, comment = file.read(_END_SIZE), file.read()
        ours = comment.startswith(_MARK)
        # Also where the mark itself is damaged.
        if not ours and not (end.startswith(_END) and end.endswith(_LENGTH.to_bytes(2, "little"))):
            return
        file.seek(0)
        digest, remaining = hashlib.sha256(), size - _LENGTH
        while remaining and (part := file.read(min(remaining, 1 << 20))):
            digest.update(part)
            remaining -= len(part)
    if digest.hexdigest().encode() != comment.removeprefix(_MARK):
        raise InputError(f"{given} is damaged: its content does not give its checksum; give an undamaged copy.")
