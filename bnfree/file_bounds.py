"""What a file may cost: bounds on its archive, its tensors, and the network that it describes."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules import module as modules

from bnfree.errors import InputError

# A pickled list takes some sixty times its byte in the pickle.
LARGEST_PICKLE = 1 << 24
MOST_VALUES = 5_000_000
# Weights of a network that any file may describe: 256 MB in float32. A larger one needs a file of its size.
MOST_WEIGHTS = 1 << 26
MOST_TENSORS = 100_000


def check_archive(path: str | os.PathLike[str], given: str) -> None:
    """Refuses a file of torch.save that would become much larger in memory than it is.

    Args:
        path: the file; what is no archive passes, for torch to say what is wrong with it.
        given: how the user gave it, the subject of the message.

    Raises:
        InputError: parts that are compressed, or a description of more than 16 MB.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    # Whatever is wrong with an archive, torch meets it, too.
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return
    size = Path(path).stat().st_size
    if sum(part.file_size for part in parts) > size or any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise InputError(f"{given} holds more than its size, which torch.save never writes; give an undamaged copy.")
    if any(part.filename.endswith(".pkl") and part.file_size > LARGEST_PICKLE for part in parts):
        raise InputError(f"{given} describes its content in more than {LARGEST_PICKLE} bytes, as no checkpoint does.")


def check_tensors(content: Any, given: str) -> None:
    """Refuses tensors that claim more elements than they store, and would be as large as they claim once copied.

    Args:
        content: what was read from a file.
        given: how the user gave it, the subject of the message.

    Raises:
        InputError: there is one, or more values than any checkpoint has.
    """
    stack, seen = [content], 0
    while stack:
        item = stack.pop()
        seen += 1
        if seen > MOST_VALUES:
            raise InputError(f"{given} holds more values than a checkpoint has; give an undamaged copy.")
        if isinstance(item, Mapping):
            stack.extend(item.values())
        elif isinstance(item, list | tuple):
            stack.extend(item)
        elif isinstance(item, Tensor) and not _stores_all(item):
            raise InputError(f"{given} holds a tensor that claims more numbers than it stores; give an undamaged copy.")


def _stores_all(tensor: Tensor) -> bool:
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


@contextmanager
def bounded_network(path: str | os.PathLike[str] | None, given: str) -> Iterator[None]:
    """Ends the building of a network that has many more weights than the file that describes it.

    The memory of a weight is asked for before it is registered, and used afterwards: here it is given back unused.

    Args:
        path: the file; None: there is none, and no bound.
        given: how the user gave it, the subject of the message.

    Raises:
        InputError: from within, the network is larger.
    """
    if path is None or not Path(path).is_file():
        yield
        return
    most, weights, tensors = MOST_WEIGHTS + Path(path).stat().st_size, 0, 0

    def count(module: Any, name: str, value: Any) -> None:
        nonlocal weights, tensors
        weights += value.numel() if isinstance(value, Tensor) else 0
        tensors += 1
        if weights > most or tensors > MOST_TENSORS:
            raise larger

    larger = InputError(f"{given} describes a network of more than {most} weights, far more than the file has.")
    with ExitStack() as hooks:
        for register in (
            modules.register_module_parameter_registration_hook,
            modules.register_module_buffer_registration_hook,
        ):
            hooks.callback(register(count).remove)
        try:
            yield
        except MemoryError:
            raise larger from None
        except RuntimeError as error:
            # PyTorch has no class of its own for a weight that is larger than the machine, or than a number can say.
            if any(
                words in str(error) for words in ("allocate memory", "enough memory", "size calculation overflowed")
            ):
                raise larger from None
            raise
