"""Masks as data: from the name of a layer to a bool tensor of its weight's shape, True where a weight survives.

In the network a mask lives in its layer (`BinaryConv2d.set_mask`), inside the standardisation. Masks as data lie on the
CPU. Packed they take one bit a weight and hold nothing but tensors, integers and strings, as a checkpoint of a callback
must.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bnfree.convolution import BinaryConv2d
from bnfree.diagnostics.signs import convolutions
from bnfree.errors import InputError
from bnfree.packing.bits import pack_bits, unpack_bits
from bnfree.tickets.layers import prunable_layers

Masks = dict[str, Tensor]
"""From the name of a layer to a bool tensor (O, I/groups, kH, kW), True where a weight survives."""


def current_masks(network: nn.Module, layers: Mapping[str, BinaryConv2d] | None = None) -> Masks:
    """The masks of a network, all True where a layer is dense; copies on the CPU, in the order of the network.

    Args:
        network: the network.
        layers: the layers in question, by name; None: the `prunable_layers` and every other one that has a mask.
    """
    if layers is None:
        everything = convolutions(network)
        prunable = prunable_layers(network)
        layers = {n: layer for n, layer in everything.items() if n in prunable or layer.mask is not None}
    return {name: layer_mask(layer) for name, layer in layers.items()}


def layer_mask(layer: BinaryConv2d) -> Tensor:
    """The mask of one layer, all True when dense; a copy on the CPU."""
    if layer.mask is None:
        return torch.ones(layer.weight.shape, dtype=torch.bool)
    return layer.mask.detach().to("cpu", copy=True)


@torch.no_grad()
def apply(network: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Gives masks to the layers of a network, and sets the latent weights that they prune to 0.

    A mask that is there already is changed in place: a compiled network is not compiled again, and
    DistributedDataParallel goes on with the tensor that it knows. Layers that `masks` does not name stay as they are.
    Nothing has changed when an error is raised.

    Args:
        network: the network.
        masks: bool or 0/1 tensors, on any device.

    Raises:
        InputError: the name of no convolution of the network, a mask of another shape or with other values, or one that
            is no tensor, such as a numpy array.
    """
    layers = convolutions(network)
    check_masks(layers, masks, type(network).__name__)
    for name, mask in masks.items():
        layer = layers[name]
        if layer.mask is None:
            layer.set_mask(mask)
        else:
            layer.mask.copy_(mask)
    zero_pruned(network)


def check_masks(layers: Mapping[str, BinaryConv2d], masks: Mapping[str, Tensor], network: str) -> None:
    """Refuses masks that do not fit.

    Args:
        layers: the convolutions of a network by name.
        masks: the masks.
        network: what the message calls the network.

    Raises:
        InputError: an unknown name, something other than a tensor, another shape, or values other than 0 and 1.
    """
    for name, mask in masks.items():
        if name not in layers:
            raise InputError(f"masks holds {name!r}, which is no convolution of {network}; give masks of this network.")
        if not isinstance(mask, Tensor):
            kind = type(mask).__name__
            advice = "torch.from_numpy makes one of it" if kind == "ndarray" else "give a bool tensor"
            raise InputError(f"masks[{name!r}] is a {kind} and no tensor; {advice}.")
        shape = layers[name].weight.shape
        if mask.shape != shape:
            raise InputError(
                f"masks[{name!r}] has shape {tuple(mask.shape)}, but the weight {tuple(shape)}; give masks of a "
                "network of the same width and depth."
            )
        if mask.dtype != torch.bool and not ((mask == 0) | (mask == 1)).all():
            raise InputError(f"masks[{name!r}] holds values other than 0 and 1; give a bool tensor.")


@torch.no_grad()
def zero_pruned(network: nn.Module, optimizer: Optimizer | None = None) -> None:
    """Sets what belongs to pruned weights to 0: the latent weights, their gradients, the optimizer's state of them.

    The layer gives pruned weights no gradient, so that whatever is 0 once stays 0 under every optimizer without noise
    of its own: one call after pruning is enough. It keeps what the network does not use from having an effect
    nonetheless: on the norms of adaptive gradient clipping, on weight decay, on averages over the state dict.

    Args:
        network: the network, masked.
        optimizer: its state entries of the shape of a masked weight (momentum, moments of Adam) are treated likewise.
    """
    for layer in convolutions(network).values():
        if layer.mask is None:
            continue
        pruned = ~layer.mask
        tensors = [layer.weight, *([] if layer.weight.grad is None else [layer.weight.grad])]
        if optimizer is not None and layer.weight in optimizer.state:
            state = optimizer.state[layer.weight].values()
            tensors += [value for value in state if isinstance(value, Tensor) and value.shape == pruned.shape]
        for tensor in tensors:
            # Filled, not multiplied, which would leave a NaN what it is.
            tensor.masked_fill_(pruned, 0)


def pack_masks(masks: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Masks at one bit a weight, for checkpoints.

    Returns:
        From the name of the layer to `shape` (list of integers) and `bits` (uint8 (ceil(n / 8),), the first weight of
        the flattened mask in the lowest bit, the bits that fill up the last byte 0).
    """
    return {
        name: {"shape": list(mask.shape), "bits": pack_bits(mask.detach().cpu().bool().flatten())}
        for name, mask in masks.items()
    }


def unpack_masks(packed: Mapping[str, Mapping[str, Any]]) -> Masks:
    """What `pack_masks` has packed.

    Raises:
        InputError: another number of bytes than the shape asks for.
    """
    masks = {}
    for name, entry in packed.items():
        shape, bits = tuple(entry["shape"]), entry["bits"]
        if bits.numel() != -(-math.prod(shape) // 8):
            raise InputError(
                f"the packed mask of {name!r} has {bits.numel()} bytes, which does not fit its shape {shape}; it is "
                "damaged."
            )
        masks[name] = unpack_bits(bits, math.prod(shape)).view(shape)
    return masks


def checksum(masks: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and packed bits, in hexadecimal.

    The same on every machine, device and process, and whatever the order of the mapping.
    """
    digest = hashlib.sha256()
    for name, entry in sorted(pack_masks(masks).items()):
        digest.update(f"{len(name)}:{name}{entry['shape']}".encode())
        digest.update(entry["bits"].numpy().tobytes())
    return digest.hexdigest()
