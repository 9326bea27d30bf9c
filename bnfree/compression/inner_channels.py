"""Channels between the two convolutions of a block: read as the network uses them, and put back fewer.

They can be fewer without a change of anything outside the block: neither trunk nor shortcut sees them. What is read is
what the forward pass uses: standardisation, gain, pruning mask and a batch norm are constants of a trained layer and
are folded into its weights. Standardised again, a filter with fewer inputs would be another one; so what is put back is
a plain convolution.

A method of compression is a function from `InnerChannels` to fewer of them, or a class whose objects are such
functions; a built-in one is a file here and a line in `bnfree.plugins.BUILT_IN`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bnfree.backbones import NFResNet18, ReActNet18, ReActNetA
from bnfree.backbones.nf_resnet18 import NormalizerFreeBlock
from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError
from bnfree.normalizers import fold


@dataclass(frozen=True)
class InnerChannels:
    """C channels of a branch, outgoing * relu(incoming * x + shift), up to a constant factor."""

    incoming: Tensor
    """What each is made of: (C, I, k, k), float64."""
    shift: Tensor
    """(C,), float64."""
    outgoing: Tensor
    """What is made of them: (O, C, k, k), float64."""

    @property
    def rows(self) -> Tensor:
        """Each channel's filter and shift as one row, (C, I * k * k + 1)."""
        return torch.cat([self.incoming.flatten(1), self.shift[:, None]], 1)

    def with_rows(self, rows: Tensor, outgoing: Tensor) -> InnerChannels:
        """The channels that rows (D, I * k * k + 1) and columns (O, D, k, k) say."""
        incoming = rows[:, :-1].reshape(-1, *self.incoming.shape[1:])
        return InnerChannels(incoming, rows[:, -1], outgoing)


def read_inner_channels(network: nn.Module) -> dict[str, InnerChannels]:
    """The channels inside the branches of a network, by the block's name, in the order of the blocks.

    Args:
        network: an `NFResNet18`.

    Raises:
        InputError: another network, or one whose normaliser depends on the image.
    """
    return {name: _read(block) for name, block in _blocks(network).items()}


def with_inner_channels(network: nn.Module, channels: dict[str, InnerChannels]) -> nn.Module:
    """A copy of a network with other channels inside its branches.

    Its state dict is that of `NFResNet18(..., inner_channels=[...])` with their numbers.

    Args:
        network: what they were read from.
        channels: one entry for each block, by its name; outside of the branch the shapes are the block's.

    Raises:
        InputError: another network.
    """
    changed = copy.deepcopy(network)
    for name, block in _blocks(changed).items():
        found, like = channels[name], block.convolution1.weight
        block.convolution1 = _plain(block.convolution1, found.incoming)
        block.convolution2 = _plain(block.convolution2, found.outgoing)
        block.activation2.shift = nn.Parameter(found.shift.to(like))
        block.normalizer2 = None
    return changed


def _blocks(network: nn.Module) -> dict[str, NormalizerFreeBlock]:
    name = type(network).__name__
    if isinstance(network, ReActNet18 | ReActNetA):
        raise InputError(
            f"network={name} has a shortcut around every convolution, so that no channel lies inside a branch; thin "
            "out its filters while it trains, with the plugin mask_sparsity."
        )
    # A subclass may have other arguments than those that the file of the result needs.
    if type(network) is not NFResNet18:
        raise InputError(f"network={name} is none whose branches are known here; give an NFResNet18.")
    return {name: block for name, block in network.named_modules() if isinstance(block, NormalizerFreeBlock)}


@torch.no_grad()
def _read(block: NormalizerFreeBlock) -> InnerChannels:
    incoming, outgoing = (layer.effective_weight().double().cpu() for layer in (block.convolution1, block.convolution2))
    factor, shift = fold(block.normalizer2, len(incoming))
    shift = shift + block.activation2.shift.double().cpu()
    return InnerChannels(incoming * factor.view(-1, 1, 1, 1), shift, outgoing)


def _plain(layer: BinaryConv2d, weight: Tensor) -> BinaryConv2d:
    out_channels, in_channels, size, _ = weight.shape
    plain = BinaryConv2d(
        in_channels, out_channels, size, layer.stride, layer.padding, binary_weights=False, standardize=False
    )
    plain.weight = nn.Parameter(weight.to(layer.weight))
    plain.lean = layer.lean
    return plain.train(layer.training)
