"""Reader of the idx format, in which MNIST and its relatives are stored.

Format: http://yann.lecun.com/exdb/mnist/: two zero bytes, the type, the number of dimensions, each dimension as a
big-endian 32-bit number, the values.
"""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bnfree.errors import InputError

UINT8 = 0x08


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Read an idx file of 8-bit values, gzipped if its name ends in `.gz`.

    Args:
        path: The file.
        dimensions: The number of dimensions it should have: 3 for images, 1 for labels.

    Returns:
        uint8, of the shape the file states.

    Raises:
        InputError: the file is not one, or is damaged.
    """
    remedy = "replace it by an undamaged copy"
    try:
        raw = path.read_bytes()
        content = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}): {remedy}.") from error
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes([0, 0, UINT8, dimensions]):
        raise InputError(
            f"{path} begins with {content[:4].hex(' ') or 'nothing'} and not with 00 00 08 {dimensions:02x}, as an idx "
            f"file of {dimensions} dimensions does: {remedy}."
        )
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    values = int(np.prod(shape, dtype=np.uint64))
    if len(content) - header != values:
        raise InputError(f"{path} states {values} values but holds {len(content) - header}: {remedy}.")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy())
