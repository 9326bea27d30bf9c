"""How the signs of weights move: which of them have flipped between two moments of training."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bnfree.backbones.residual import ResidualUnit
from bnfree.convolution import BinaryConv2d
from bnfree.state_dicts import plain_name

# Four signs of two bits each go into a byte.
SHIFTS = (0, 2, 4, 6)


def binary_layers(network: nn.Module) -> dict[str, BinaryConv2d]:
    """The convolutions whose signs are worth following, by name, without the `_orig_mod.` that torch.compile adds.

    Those with binary weights. In a network without any, such as step 1 of two, the convolutions of its residual units,
    which step 2 makes binary; without residual units, every `BinaryConv2d`.
    """
    layers = convolutions(network)
    binary = {name: layer for name, layer in layers.items() if layer.binary_weights}
    units = {id(module.convolution) for module in network.modules() if isinstance(module, ResidualUnit)}
    return binary or {name: layer for name, layer in layers.items() if id(layer) in units} or layers


def convolutions(network: nn.Module) -> dict[str, BinaryConv2d]:
    """Every `BinaryConv2d` of a network by name, without the `_orig_mod.` that torch.compile adds."""
    return {plain_name(name): module for name, module in network.named_modules() if isinstance(module, BinaryConv2d)}


@torch.no_grad()
def weight_signs(layer: BinaryConv2d) -> Tensor:
    """Signs of the weight that the convolution uses: -1 or +1, and 0 where it is masked; sign(0) = +1.

    Taken from `effective_weight()`: a gain that changes its sign flips its whole filter. In a layer with real weights
    these are the signs of the standardised weight times the gain.

    Returns:
        int8, shape of `layer.weight`.
    """
    signs = torch.where(layer.effective_weight() >= 0, 1, -1).to(torch.int8)
    return signs if layer.mask is None else signs * layer.mask


def count_flips(before: Tensor, after: Tensor) -> tuple[int, int]:
    """How many signs have changed, and how many could: the weights that are masked at neither moment.

    Args:
        before: signs as `weight_signs` gives them.
        after: the same of a later moment; same shape, and on the same device.
    """
    product = before * after
    flipped, compared = torch.stack([(product < 0).sum(), (product != 0).sum()]).tolist()
    return flipped, compared


def flipped_share(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """The share (0 to 1) of the signs of all layers that have changed, as `count_flips` counts them.

    Args:
        pairs: signs of each layer before and after; at least one layer.

    Returns:
        float32 (), on the device of the signs, which nothing waits for; 0 where nothing could flip.
    """
    products = [before * after for before, after in pairs]
    flipped = torch.stack([(product < 0).sum() for product in products]).sum()
    compared = torch.stack([(product != 0).sum() for product in products]).sum()
    return flipped / compared.clamp(min=1)


def pack_signs(signs: Tensor) -> Tensor:
    """Signs in a quarter of their size, for a checkpoint.

    Args:
        signs: int8 of any shape, values -1, 0 and +1.

    Returns:
        uint8 (ceil(n / 4),), on the same device.
    """
    codes = (signs.flatten() + 1).to(torch.uint8)
    codes = nn.functional.pad(codes, (0, -len(codes) % len(SHIFTS))).view(-1, len(SHIFTS))
    packed = codes[:, 0]
    for column, shift in enumerate(SHIFTS[1:], start=1):
        packed = packed | codes[:, column] << shift
    return packed


def unpack_signs(packed: Tensor, shape: torch.Size) -> Tensor:
    """What `pack_signs` has packed, int8 in its former shape."""
    codes = torch.stack([packed >> shift & 3 for shift in SHIFTS], dim=1).flatten()
    return (codes[: shape.numel()].to(torch.int8) - 1).view(shape)
