"""Trained network -> constants and bits -> a file -> a callable network on bits.

packed = pack(network, info=NetworkInfo(mean=..., std=..., class_names=...))
packed.save("network.safetensors")
network = load("network.safetensors")
logits, guesses = network(images), network.predict("cat.jpg", top=3)
"""

from bnfree.packing.comparison import Comparison, compare
from bnfree.packing.file_format import is_packed
from bnfree.packing.info import NetworkInfo
from bnfree.packing.packed_features import PackedFeatures, load_features, pack_features
from bnfree.packing.packed_network import PackedNetwork, load, pack
from bnfree.packing.preprocessing import Prediction
from bnfree.packing.zoo import pretrained_names, pretrained_path

__all__ = [
    "Comparison",
    "NetworkInfo",
    "PackedFeatures",
    "PackedNetwork",
    "Prediction",
    "compare",
    "is_packed",
    "load",
    "load_features",
    "pack",
    "pack_features",
    "pretrained_names",
    "pretrained_path",
]
