"""Image files decoded once, kept smaller in one file that is fast to read."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from numpy.typing import NDArray
from torch import Tensor

from bnfree.errors import InputError
from bnfree.files import whole_file
from bnfree.images.decoding import DECODING, decode_image, decode_jpeg_bytes
from bnfree.images.jpeg_header import read_jpeg_header
from bnfree.images.resizing import resize_shorter_side

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

Kind = Literal["jpeg256", "raw"]
JPEG_QUALITY = 95
CHUNK = 64


class ImageStore:
    """A set of images with their shorter side reduced to the evaluation's, in one file that is mapped into memory.

    `raw` keeps the pixels, `jpeg256` encodes them as JPEG of quality 95: less space, slower to read. Images that are
    smaller already keep their size. With `raw` the pixels of an evaluation are those of the files, bit for bit. A crop
    of training is cut from the smaller image: the same part of the picture to a pixel, with less detail where it is a
    small one.

    The file lies in `folder` beside an index that is written last, so that what was stopped half-way is not taken for
    whole; it is made anew when a source file has another name, size or time, or when it is damaged. Processes that need
    it at the same time wait for the one that makes it.

    Args:
        folder: where the files of stores lie; made if it is not there.
        name: name of the part, such as `train`.
        kind: `raw` or `jpeg256`.
        shorter_side: pixels that a larger image's shorter side is reduced to.
        exif_orientation: as in `decode_image`.

    Raises:
        InputError: the folder cannot be written to, or the disk has too little space.
    """

    def __init__(self, folder: Path, name: str, kind: Kind, shorter_side: int, exif_orientation: bool = True) -> None:
        self.folder, self.kind, self.shorter_side = folder, kind, shorter_side
        self.exif_orientation = exif_orientation
        self._stem = f"{name}-{kind}-{shorter_side}"
        self._index: dict[str, NDArray[np.int64]] = {}
        self._data: NDArray[np.uint8] | None = None

    def fill(self, root: Path, paths: list[str]) -> None:
        """Opens the store of these files, which is made if there is none or files have changed.

        Args:
            root: the data folder.
            paths: paths of the files relative to `root`.

        Raises:
            InputError: as above, or a file that cannot be decoded.
        """
        signature = self._signature(root, paths)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _lock(self.folder / f".{self._stem}.lock"):
                index = self._read_index(signature, len(paths))
                if index is None:
                    index = self._make(root, paths, signature)
        except OSError as error:
            raise InputError(
                f"cache_dir={str(self.folder)!r} cannot be written to ({error.strerror or error}); give another one."
            ) from error
        self._index = index

    def image(self, index: int) -> Tensor:
        """An image, shape (3, H, W), uint8, as a view of (H, W, 3); only to be read.

        Raises:
            InputError: it has been damaged since it was written.
        """
        if self._data is None:
            # Opened by each process itself, on first use.
            self._data = np.memmap(self._path("data"), np.uint8, mode="c")
        start, end = self._index["offsets"][index : index + 2]
        content = torch.from_numpy(self._data[start:end])
        if self.kind == "jpeg256":
            # Before it is decoded: damaged bytes can state gigabytes of pixels.
            header = read_jpeg_header(self._data[start:end])
            stated = None if header is None else [header.height, header.width]
            try:
                if stated != self._index["shapes"][index].tolist():
                    raise OSError("another size")
                return decode_jpeg_bytes(content)
            except (RuntimeError, OSError) as error:
                raise InputError(f"{self._path('data')} is damaged: remove it, and it is made again.") from error
        height, width = self._index["shapes"][index].tolist()
        return content.view(height, width, 3).permute(2, 0, 1)

    def original_size(self, index: int) -> tuple[int, int]:
        """Height and width of the image in its file."""
        height, width = self._index["originals"][index].tolist()
        return height, width

    def __getstate__(self) -> dict[str, Any]:
        """Without the mapped file, which would be sent as a whole."""
        return {**self.__dict__, "_data": None}

    def _path(self, suffix: str) -> Path:
        return self.folder / f"{self._stem}.{suffix}"

    def _signature(self, root: Path, paths: list[str]) -> str:
        settings = f"{DECODING} {self.exif_orientation} {self.kind} {JPEG_QUALITY} {self.shorter_side}"
        digest = hashlib.sha256(settings.encode())

        def status(path: str) -> str:
            found = (root / path).stat()
            return f"{path}\0{found.st_size}\0{found.st_mtime_ns}\0"

        try:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                for text in pool.map(status, paths, chunksize=1024):
                    digest.update(os.fsencode(text))
        except OSError as error:
            raise InputError(f"{error.filename} cannot be read ({error.strerror}): replace or remove it.") from error
        return digest.hexdigest()

    def _read_index(self, signature: str, count: int) -> dict[str, NDArray[np.int64]] | None:
        """Where each image is, if that is written down whole and of these files; else None."""
        try:
            size = self._path("data").stat().st_size
            with np.load(self._path("index.npz")) as file:
                arrays = {name: file[name] for name in file.files}
            description = json.loads(str(arrays.pop("description")))
        # Damaged archives end in many exception types, all of which mean the same.
        except Exception:
            return None
        if description != {"signature": signature, "bytes": size}:
            return None
        kinds = {"offsets": (count + 1,), "shapes": (count, 2), "originals": (count, 2)}
        if {name: array.shape for name, array in arrays.items()} != kinds:
            return None
        if any(array.dtype != np.int64 for array in arrays.values()):
            return None
        lengths = np.diff(arrays["offsets"])
        ends = arrays["offsets"][0] == 0 and arrays["offsets"][-1] == size
        fits = self.kind != "raw" or bool((lengths == 3 * arrays["shapes"].prod(1)).all())
        positive = all(bool((values > 0).all()) for values in (lengths, arrays["shapes"], arrays["originals"]))
        return arrays if ends and fits and positive else None

    def _make(self, root: Path, paths: list[str], signature: str) -> dict[str, NDArray[np.int64]]:
        from tqdm import tqdm  # type: ignore[import-untyped]

        start = time.monotonic()
        rank_zero_info(f"Making {self._path('data')} of {len(paths):,} images.")
        # Gone first, so that it never describes another file.
        self._path("index.npz").unlink(missing_ok=True)
        encode: Callable[[Tensor], bytes] = _encode_jpeg if self.kind == "jpeg256" else _pixels
        offsets, shapes, originals = [0], [], []

        def convert(path: str) -> tuple[bytes, torch.Size, torch.Size]:
            original = decode_image(root / path, self.exif_orientation)
            image = resize_shorter_side(original, self.shorter_side, enlarge=False)
            return encode(image), image.shape[1:], original.shape[1:]

        with (
            whole_file(self._path("data")) as unfinished,
            unfinished.open("wb") as file,
            ThreadPoolExecutor(os.cpu_count()) as pool,
            # Shown on a terminal only.
            tqdm(total=len(paths), desc=f"cache {self._stem}", unit="images", leave=False, disable=None) as bar,
        ):
            for first in range(0, len(paths), CHUNK):
                for content, shape, original in pool.map(convert, paths[first : first + CHUNK]):
                    file.write(content)
                    offsets.append(offsets[-1] + len(content))
                    shapes.append(shape)
                    originals.append(original)
                bar.update(len(shapes) - first)
                if first == 0:
                    self._check_space(offsets[-1] / len(shapes) * len(paths))
            file.flush()
            os.fsync(file.fileno())
        description = json.dumps({"signature": signature, "bytes": offsets[-1]})
        lists = {"offsets": offsets, "shapes": shapes, "originals": originals}
        arrays = {name: np.array(values, np.int64) for name, values in lists.items()}
        with whole_file(self._path("index.npz")) as unfinished, unfinished.open("wb") as file:
            np.savez(file, description=np.array(description), **arrays)  # type: ignore[arg-type]
        rank_zero_info(f"Made it in {time.monotonic() - start:.0f} s: {offsets[-1] / 2**20:,.1f} MiB.")
        return arrays

    def _check_space(self, needed: float) -> None:
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise InputError(
                f"cache={self.kind!r} needs about {needed / 2**30:.1f} GiB in cache_dir={str(self.folder)!r}, where "
                f"{free / 2**30:.1f} GiB are free: give another cache_dir, or cache 'jpeg256' or 'none'."
            )


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Waits until no other process holds the file; the lock ends with the process, however it ends."""
    with path.open("w") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _pixels(image: Tensor) -> bytes:
    return image.permute(1, 2, 0).contiguous().numpy().tobytes()


def _encode_jpeg(image: Tensor) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
