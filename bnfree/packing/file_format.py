"""The file of a packed network: safetensors, format versions 1 and 2.

A safetensors file (8 bytes length of the header, header in JSON, tensors) whose metadata has one entry,
`bnfree.packed`, a JSON table:

    format_version   1; 2 if filters are left out
    layout           the layers: architecture, stem, units, classifier, with shape, stride and form of every weight
    info             what `NetworkInfo` has: mean, std, image_shape, class_names, source_run, accuracy,
                     resize, exif_orientation
    checksum         SHA-256, in hexadecimal digits, over the rest of the table as JSON with sorted keys and without
                     spaces, and then for each tensor, by name, a line `name dtype [shape]` and its bytes

Tensors are named `stem.*`, `units.0.*`, ..., `classifier.*`. Each weight has a `scale`, float32 (O,), and by its form

    signs                     `signs`: a bit a weight
    planes                    `signs` and `survivors`: pruned weights, a bit more
    digits                    `digits`: pruned weights, five ternary digits a byte
    float32, float16, int8    `weight`: a real weight, divided by its scale

besides `bias` (stem, classifier), `thresholds` and `rprelu` (units), all float32; see `bnfree.packing.layers` for what
they mean and `bnfree.packing.bits` for the order of bits. Numbers are little-endian.

Filters of binary weights whose scale is 0, such as rows that were taken out of a layer, are left out. The layout then
has the number of the others (`filters` of a unit, `projection_filters` of its projection), and the weight a tensor
`filters`, uint8 (ceil(O / 8),), bit 1 for each of those; its `scale` and bits are of that many filters in place of O.

Reading runs no code from the file. Sizes are compared with the file's before anything is allocated, and the memory
that a network needs is bounded by a multiple of its file, and of 16 MiB where filters are left out. The checksum finds
damage, not forgery.
"""

from __future__ import annotations

import hashlib
import json
import os
import reprlib
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from bnfree.checksums import value_bytes
from bnfree.errors import InputError
from bnfree.files import whole_file
from bnfree.packing.file_layout import MaskForm, expected_tensors, restore, store
from bnfree.packing.info import NetworkInfo
from bnfree.packing.layers import PackedLayers

LATEST_VERSION = 2
# One entry, because safetensors writes several in an order that changes from process to process.
ENTRY = "bnfree.packed"
LARGEST_FILE = 1 << 30
LARGEST_HEADER = 1 << 22
LONGEST_REASON = 300
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.int8: "I8", torch.uint8: "U8"}


def write(layers: PackedLayers, info: NetworkInfo, path: str | os.PathLike[str], masks: MaskForm = "planes") -> None:
    """Writes a packed network; the file is there as a whole or not at all.

    The same network gives the same bytes.

    Raises:
        InputError: unknown form of masks, a network or a header beyond what `read` accepts, or a place that cannot be
            written to.
    """
    layout, tensors = store(layers, masks)
    try:
        expected_tensors(layout)
    except InputError as error:
        raise InputError(f"the network does not fit into the format: {error}") from error
    # What has no filters left out is a file that earlier versions of bnfree read.
    version = LATEST_VERSION if any({"filters", "projection_filters"} & unit.keys() for unit in layout["units"]) else 1
    table = {"format_version": version, "layout": layout, "info": info.to_dict()}
    table["checksum"] = checksum(table, tensors)
    plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
    content = serialize(plain, metadata={ENTRY: json.dumps(table, separators=(",", ":"))})
    if int.from_bytes(content[:8], "little") > LARGEST_HEADER or len(content) > LARGEST_FILE:
        raise InputError(
            f"the file would have {len(content)} bytes (at most {LARGEST_FILE}) and a header above {LARGEST_HEADER} "
            "bytes; shorten class_names and source_run."
        )
    reason = "no such folder"
    if Path(path).parent.is_dir():
        try:
            with whole_file(path) as unfinished:
                unfinished.write_bytes(content)
            return
        except OSError as error:
            reason = str(error.strerror)
    raise InputError(f"path={str(path)!r} cannot be written ({reason}); give a file in a folder.")


def read(path: str | os.PathLike[str]) -> tuple[PackedLayers, NetworkInfo]:
    """Reads what `write` has written.

    Raises:
        InputError: no such file, or one that is damaged, of another kind or of another version.
    """
    given = f"path={str(path)!r}"
    _check_size(Path(path), given)
    try:
        with safe_open(path, framework="pt") as file:
            table = _parse((file.metadata() or {}).get(ENTRY), given)
            try:
                return _restore(file, table)
            except InputError as error:
                reason = str(error)
                if len(reason) > LONGEST_REASON:
                    reason = reason[:LONGEST_REASON] + "... ."
                raise InputError(f"{given} is not a valid packed network: {reason}") from error
    except InputError:
        raise
    except Exception as error:
        # Whatever the parser stumbles over means the same to the user.
        raise InputError(
            f"{given} cannot be read as a safetensors file: it is damaged or of another kind "
            f"({type(error).__name__}); give a file that PackedNetwork.save has written."
        ) from error


def is_packed(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins like one that `write` has written, whatever its name; `read` says whether it is sound."""
    try:
        with Path(path).open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            return length <= LARGEST_HEADER and f'"{ENTRY}"'.encode() in file.read(length)
    except (OSError, ValueError):
        return False


def checksum(table: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256 over the table, without its own entry `checksum`, and the tensors, as 64 hexadecimal digits."""
    rest = {name: value for name, value in table.items() if name != "checksum"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {DTYPES[tensor.dtype]} {list(tensor.shape)}\n".encode())
        digest.update(value_bytes(tensor))
    return digest.hexdigest()


def _check_size(path: Path, given: str) -> None:
    if not path.is_file():
        raise InputError(f"{given} is not a file; give a packed network.")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
    except OSError as error:
        raise InputError(f"{given} cannot be read ({error.strerror}).") from error
    if size > LARGEST_FILE:
        raise InputError(f"{given} has {size} bytes; a packed network has at most {LARGEST_FILE}.")
    if size < 8 or header > min(size - 8, LARGEST_HEADER):
        raise InputError(f"{given} is not a safetensors file or is truncated: its header would be {header} bytes long.")


def _parse(entry: str | None, given: str) -> dict[str, Any]:
    if entry is None:
        raise InputError(f"{given} holds no packed network; give a file that PackedNetwork.save has written.")
    try:
        table = json.loads(entry)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{given} is damaged: its entry {ENTRY} is not JSON.") from error
    version = table.get("format_version") if isinstance(table, dict) else None
    if type(version) is not int or not 1 <= version <= LATEST_VERSION:
        raise InputError(
            f"{given} has the format version {reprlib.repr(version)}, this bnfree reads 1 to {LATEST_VERSION}; pack "
            "the network again, or install the bnfree that wrote it."
        )
    return table


def _restore(file: Any, table: dict[str, Any]) -> tuple[PackedLayers, NetworkInfo]:
    if set(table) != {"format_version", "layout", "info", "checksum"}:
        raise InputError("its table does not have the entries layout, info and checksum.")
    expected = expected_tensors(table["layout"])
    found = set(file.keys())
    if found != set(expected):
        raise InputError(f"it has missing or surplus tensors, such as {min(found ^ set(expected))!r}.")
    for name, (dtype, shape) in expected.items():
        entry = file.get_slice(name)
        if entry.get_dtype() != DTYPES[dtype] or tuple(entry.get_shape()) != shape:
            raise InputError(
                f"{name} is {entry.get_dtype()} {entry.get_shape()} in place of {DTYPES[dtype]} {list(shape)}."
            )
    # Copied, because the file stays mapped otherwise, and whoever overwrites it changes the network.
    tensors = {name: file.get_tensor(name).clone() for name in expected}
    if checksum(table, tensors) != table["checksum"]:
        raise InputError("it is damaged, since its checksum is not that of its content.")
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{name} holds values that are not finite.")
    layers = restore(table["layout"], tensors.__getitem__)
    info = NetworkInfo.from_dict(table["info"])
    info.check(layers.in_channels, layers.num_classes)
    return layers, info
