"""What a JPEG file says of itself before its pixels."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

JPEG_START = b"\xff\xd8\xff"
# Frame headers of all codings: C4, C8 and CC among their numbers are tables and an extension.
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SCAN, _END, _APP1 = 0xDA, 0xD9, 0xE1
# They stand alone, without a length: TEM and the restart markers.
_BARE = {0x01, *range(0xD0, 0xD8)}


class JpegHeader(NamedTuple):
    """Size in pixels, and whether there is a segment that EXIF or XMP data may be in."""

    height: int
    width: int
    has_metadata: bool


def read_jpeg_header(data: NDArray[np.uint8]) -> JpegHeader | None:
    """Read the segments of a JPEG file (ITU-T T.81, annex B) up to its first scan.

    Args:
        data: The file, shape (N,).

    Returns:
        None where it is no JPEG file, or is damaged before its frame header.
    """
    if data[:3].tobytes() != JPEG_START:
        return None
    place, size, has_metadata = 2, None, False
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = int(data[place + 1])
        if marker == 0xFF or marker in _BARE:
            place += 1 if marker == 0xFF else 2
            continue
        if marker in (_SCAN, _END):
            break
        if marker in _FRAMES and place + 9 <= len(data):
            height, width = (int(data[place + k]) << 8 | int(data[place + k + 1]) for k in (5, 7))
            size = height, width
        has_metadata |= marker == _APP1
        place += 2 + (int(data[place + 2]) << 8 | int(data[place + 3]))
    return None if size is None else JpegHeader(*size, has_metadata)
