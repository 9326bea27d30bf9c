"""Trained network -> constants and bits -> a file -> a callable network on bits.

packed = pack(network, info=NetworkInfo(mean=..., std=..., class_names=...))
packed.save("network.safetensors")
logits = load("network.safetensors")(images)
"""

from bnfree.packing.comparison import Comparison, compare
from bnfree.packing.file_format import is_packed
from bnfree.packing.info import NetworkInfo
from bnfree.packing.packed_network import PackedNetwork, load, pack
from bnfree.packing.zoo import pretrained_names, pretrained_path

__all__ = [
    "Comparison",
    "NetworkInfo",
    "PackedNetwork",
    "compare",
    "is_packed",
    "load",
    "pack",
    "pretrained_names",
    "pretrained_path",
]
