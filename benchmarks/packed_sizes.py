"""Sizes of packed files against the same networks in float32, without and with masks.

    python benchmarks/packed_sizes.py

The float32 size is that of the saved state dict's numbers. Random weights: a size does not depend on them. Masks prune
70 % of the binary weights; `planes` store 2 bits a weight, `digits` 1.6.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.convolution import BinaryConv2d
from bnfree.packing import pack
from bnfree.packing.file_layout import Masks
from bnfree.packing.real_weights import RealPrecision

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ReActNet18, CIFAR-10, binary shortcuts": lambda: ReActNet18(10, binary_shortcut=True),
    "ReActNet18, CIFAR-10": lambda: ReActNet18(10),
    "ReActNet18, CIFAR-100, binary shortcuts": lambda: ReActNet18(100, binary_shortcut=True),
    "ReActNet18, ImageNet, binary shortcuts": lambda: ReActNet18(1000, stem="imagenet", binary_shortcut=True),
    "ReActNetA, CIFAR-10": lambda: ReActNetA(10, stem="cifar"),
    "ReActNetA, ImageNet": lambda: ReActNetA(1000),
}
PRECISIONS: tuple[RealPrecision, ...] = ("float32", "float16", "int8")
MASKS: tuple[Masks, ...] = ("planes", "digits")


def prune(network: nn.Module) -> None:
    for name, layer in network.named_modules():
        if isinstance(layer, BinaryConv2d) and layer.binary_weights and not name.startswith("stem"):
            layer.set_mask(torch.rand_like(layer.weight) < 0.3)


def size(network: nn.Module, precision: RealPrecision, masks: Masks = "planes") -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.safetensors"
        pack(network, precision, engine="torch").save(path, masks=masks)
        return path.stat().st_size


def main() -> None:
    for name, build in NETWORKS.items():
        torch.manual_seed(0)
        network = build()
        full = sum(4 * tensor.numel() for tensor in network.state_dict().values())
        print(f"{name}: float32 {full:,} bytes")
        sizes = {precision: size(network, precision) for precision in PRECISIONS}
        prune(network)
        sizes |= {f"float16, 30 % left, {masks}": size(network, "float16", masks) for masks in MASKS}
        for kind, count in sizes.items():
            print(f"    {kind}: {count:,} bytes, {full / count:.1f}x smaller")


if __name__ == "__main__":
    main()
