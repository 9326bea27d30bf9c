"""A packed network as a program of `torch.export`: runs wherever torch does, without bnfree."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bnfree.packing.info import NetworkInfo
from bnfree.packing.layers import PackedLayers
from bnfree.packing.unpacked_network import UnpackedNetwork

# Entry of the archive that holds what `NetworkInfo` has, as JSON.
INFO = "bnfree.json"
# Where the file does not say a size.
EXAMPLE = (64, 64)


def export_program(layers: PackedLayers, info: NetworkInfo) -> torch.export.ExportedProgram:
    """The program from images (N, C, H, W) to logits (N, num_classes), float32, for all N, and H and W as in training.

    Other sizes work too, unless `torch.export` has fixed them, as it does for images so small that the network's last
    signals are of one pixel, or excluded them, as it does the other way round; running the program says so.

    Args:
        layers: constants and bits; the program holds the weights as float32.
        info: its image_shape says H and W; without it they are 64.
    """
    size = EXAMPLE if info.image_shape is None else info.image_shape[1:]
    images = torch.zeros(2, layers.in_channels, *size)
    any_size = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    return torch.export.export(UnpackedNetwork(layers).eval(), (images,), dynamic_shapes=(any_size,))


def save_program(layers: PackedLayers, info: NetworkInfo, path: str | os.PathLike[str]) -> None:
    """Writes the program, customarily `*.pt2`, for `torch.export.load(path).module()`."""
    # Through memory: torch's own writer does not say why it fails.
    content = io.BytesIO()
    torch.export.save(export_program(layers, info), content, extra_files={INFO: json.dumps(info.to_dict())})
    Path(path).write_bytes(content.getbuffer())


def load_program(path: str | os.PathLike[str]) -> Callable[[Tensor], Tensor]:
    """What `save_program` has written, from images to logits."""
    program: Any = torch.export.load(path).module()

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = program(images)
        return logits

    return run
