"""Reader of CIFAR's pickled files that cannot run code from them."""

import hashlib
import io
import pickle
import pickletools
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnfree.errors import InputError

# Numbers, which may be read from any bytes; NumPy itself would also take what a damaged file says of other kinds, and
# crash on it.
_NUMBERS = ("b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8")


class _DType:
    """Stands for `numpy.dtype`: what a file says of the numbers of an array."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def plain(self) -> np.dtype[Any]:
        if self.code not in _NUMBERS or self.order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"it has an array of {self.order}{self.code}")
        return np.dtype(f"{self.order}{self.code}")


class _Array:
    """Stands for `numpy.ndarray`."""

    value: NDArray[Any] | None = None

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, content = state
        self.value = _numbers(content, dtype, shape, "F" if fortran else "C")


def _numbers(content: Any, dtype: Any, shape: Any, order: Any = "C") -> NDArray[Any]:
    if not isinstance(dtype, _DType):
        raise pickle.UnpicklingError("it has an array without a dtype")
    # A string of Python 2 is a text here.
    raw = content.encode("latin1") if isinstance(content, str) else bytes(memoryview(content))
    return np.frombuffer(raw, dtype.plain()).reshape(shape, order=order)


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any = "C") -> _Array:
    array = _Array()
    array.value = _numbers(content, dtype, shape, order)
    return array


def _scalar(dtype: Any, content: Any) -> Any:
    return _numbers(content, dtype, (1,))[0].item()


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it names the encoding {encoding!r}")
    return text.encode("latin1")


# What the published files and those written by newer versions of Python and NumPy name, and what stands for it here.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles containers, strings, numbers and NumPy arrays of them, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _ALLOWED[module, name]


def _unpickled(content: bytes) -> Any:
    # The unpickler takes memory for as many objects as a file numbers, before it has read them.
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("PUT", "LONG_BINPUT") and argument is not None and argument > len(content):
            raise pickle.UnpicklingError("it numbers more objects than it has")
    # The published files were written by Python 2, whose strings are bytes.
    return _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()


def _read_pickle(path: Path) -> dict[str, Any]:
    try:
        content = _unpickled(path.read_bytes())
    # Damaged bytes make the unpickler and NumPy raise nearly anything.
    except Exception as error:
        raise InputError(f"{path} is damaged ({error}): unpack its archive again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__} and not a dictionary: unpack its archive again.")
    return {
        key.decode("latin1") if isinstance(key, bytes) else key: value.value if isinstance(value, _Array) else value
        for key, value in content.items()
    }


def read_batch(path: Path, label_key: str, num_classes: int) -> tuple[Tensor, Tensor]:
    """Read a file of images and labels.

    Args:
        path: The file.
        label_key: Key of the labels, such as `fine_labels`.
        num_classes: Labels must be below it.

    Returns:
        Images (N, 3, 32, 32) uint8 and labels (N,) int64.

    Raises:
        InputError: the file is damaged or holds something else.
    """
    content = _read_pickle(path)
    images, labels = content.get("data"), content.get(label_key)
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != 3072:
        raise InputError(f"{path} has no uint8 array 'data' of shape (N, 3072): unpack its archive again.")
    classes = np.empty(0, np.int64)
    # A list of lists may be the same list many times over: small in the file, and without end as an array.
    if isinstance(labels, np.ndarray) or (isinstance(labels, list) and all(map(_is_number, labels))):
        with suppress(TypeError, ValueError, OverflowError):
            classes = np.asarray(labels, dtype=np.int64)
    if classes.shape != (len(images),) or len(images) == 0 or classes.min() < 0 or classes.max() >= num_classes:
        raise InputError(
            f"{path} has no {label_key!r} with one class of 0..{num_classes - 1} per image: unpack its archive again."
        )
    return torch.from_numpy(images.reshape(-1, 3, 32, 32).copy()), torch.from_numpy(classes)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | np.integer)


def read_class_names(path: Path, key: str, num_classes: int) -> list[str]:
    """Read the names of the classes.

    Raises:
        InputError: the file is damaged or holds something else.
    """
    names = _read_pickle(path).get(key)
    if not isinstance(names, list) or len(names) != num_classes or not all(isinstance(n, str | bytes) for n in names):
        raise InputError(f"{path} has no list {key!r} of {num_classes} names: unpack its archive again.")
    return [name.decode("latin1") if isinstance(name, bytes) else name for name in names]


def file_digest(path: Path) -> str:
    """MD5 sum of a file, as a hexadecimal string."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
