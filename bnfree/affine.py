"""What scales and shifts: the parameters of a network that are no weights."""

from __future__ import annotations

from torch import nn

from bnfree.activations import RPReLU
from bnfree.binarize import RSign
from bnfree.convolution import BinaryConv2d


def affine_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Gains, thresholds, slopes and shifts, and the parameters of normalisers with one number a channel."""
    found: list[nn.Parameter] = []
    for module in network.modules():
        if isinstance(module, BinaryConv2d):
            found += [module.gain] if isinstance(module.gain, nn.Parameter) else []
        elif isinstance(module, RSign | RPReLU) or is_normalizer(module):
            found += list(module.parameters(recurse=False))
    return found


def is_normalizer(module: nn.Module) -> bool:
    """Whether a module is a normaliser of torch or of `bnfree.normalizers`."""
    norms = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
    ours = type(module).__module__.startswith("bnfree.normalizers.")
    return isinstance(module, norms) or ours
