"""Reader of CIFAR's pickled files that cannot run code from them."""

import hashlib
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnfree.errors import InputError

# What the published files and those written by newer versions of Python and NumPy name; none of it has side effects.
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles containers, strings, numbers and NumPy arrays, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def _read_pickle(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            # The published files were written by Python 2, whose strings are bytes.
            content = _ArrayUnpickler(file, encoding="latin1").load()
    # Damaged bytes make the unpickler and NumPy raise nearly anything.
    except Exception as error:
        raise InputError(f"{path} is damaged ({error}): unpack its archive again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__} and not a dictionary: unpack its archive again.")
    return {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in content.items()}


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
