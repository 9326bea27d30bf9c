"""Networks of binary convolutions, each in three normalisations: BN-free, batch norm, none."""

from bnfree.backbones.reactnet18 import ReActNet18
from bnfree.backbones.reactnet_a import ReActNetA

__all__ = ["ReActNet18", "ReActNetA"]
