"""Networks without batch normalisation, of binary convolutions, with their twins; and real-valued teachers."""

from bnfree.backbones.nf_resnet18 import NFResNet18
from bnfree.backbones.reactnet18 import ReActNet18
from bnfree.backbones.reactnet_a import ReActNetA
from bnfree.backbones.resnet9 import ResNet9

__all__ = ["NFResNet18", "ReActNet18", "ReActNetA", "ResNet9"]
