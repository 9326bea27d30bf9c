"""Reader of the idx format, in which MNIST and its relatives are stored.

Format: http://yann.lecun.com/exdb/mnist/: two zero bytes, the type, the number of dimensions, each dimension as a
big-endian 32-bit number, the values.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bnfree.errors import InputError

UINT8 = 0x08
# A gigabyte: seventeen times the images of MNIST. A compressed file of a few megabytes can state, and hold, far more.
MOST_VALUES = 1 << 30


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
    header = 4 + 4 * dimensions
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            start = file.read(header)
            if len(start) < header or start[:4] != bytes([0, 0, UINT8, dimensions]):
                raise InputError(
                    f"{path} begins with {start[:4].hex(' ') or 'nothing'} and not with 00 00 08 {dimensions:02x}, as "
                    f"an idx file of {dimensions} dimensions does: {remedy}."
                )
            shape = struct.unpack(f">{dimensions}I", start[4:])
            values = math.prod(shape)
            if values > MOST_VALUES:
                raise InputError(f"{path} states {values} values, and more than {MOST_VALUES} are not read: {remedy}.")
            # Never more than is stated, whatever the rest of a compressed file would unpack to.
            content = file.read(values + 1)
            if len(content) > values:
                # Damage is told from a file of another shape by the checksum at the end, unless that is far away.
                file.read(1 << 26)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}): {remedy}.") from error
    if len(content) != values:
        more = " or more" if len(content) > values else ""
        raise InputError(f"{path} states {values} values but holds {len(content)}{more}: {remedy}.")
    return torch.from_numpy(np.frombuffer(content, np.uint8).reshape(shape).copy())
