"""A packed network as a program of `torch.export`: runs wherever torch does, without bnfree."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bnfree.packing.info import NetworkInfo
from bnfree.packing.layers import PackedLayers
from bnfree.packing.unpacked_network import UnpackedNetwork

# Entry of the archive that holds what `NetworkInfo` has, as JSON.
INFO = "bnfree.json"
# Larger than every size that a program could mistake for one that never changes.
EXAMPLE = 35


def export_program(layers: PackedLayers) -> torch.export.ExportedProgram:
    """The program from images (N, C, H, W) to logits (N, num_classes), float32, for all N, H and W.

    Args:
        layers: constants and bits; the program holds the weights as float32.
    """
    images = torch.zeros(2, layers.in_channels, EXAMPLE, EXAMPLE + 2)
    any_size = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    return torch.export.export(UnpackedNetwork(layers).eval(), (images,), dynamic_shapes=(any_size,))


def save_program(layers: PackedLayers, info: NetworkInfo, path: str | os.PathLike[str]) -> None:
    """Writes the program, customarily `*.pt2`, for `torch.export.load(path).module()`."""
    torch.export.save(export_program(layers), path, extra_files={INFO: json.dumps(info.to_dict())})


def load_program(path: str | os.PathLike[str]) -> Callable[[Tensor], Tensor]:
    """What `save_program` has written, from images to logits."""
    program: Any = torch.export.load(path).module()

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = program(images)
        return logits

    return run
