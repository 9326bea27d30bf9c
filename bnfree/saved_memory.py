"""What a network keeps between forward and backward pass: bytes per image, by layer.

Counted are the storages that autograd saves, each once, without parameters and buffers. That is the part of training
memory that grows with batch and depth; the count is the same in every run and on every machine with the same PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bnfree.backbones.residual import ReActNet, ResidualUnit
from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError
from bnfree.lean.chain import announce_steps

OUTSIDE = "(network)"


@dataclass(frozen=True)
class SavedMemory:
    """Bytes that a forward pass keeps for the backward pass."""

    batch_size: int
    layers: dict[str, int]
    """By residual unit and by other layer, in the order of the forward pass; what the network itself computes, such
    as the mean over the image, under its own name `(network)`. A storage that several keep counts for the first."""

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.layers.values())

    @property
    def per_image(self) -> float:
        """Total per image, the parts that do not depend on the batch (such as effective weights) included."""
        return self.total / self.batch_size


def measure_saved_memory(
    network: nn.Module, images: Tensor, loss: Callable[[Tensor], Tensor] = torch.sum
) -> SavedMemory:
    """Runs one forward pass in the network's mode, and counts what autograd keeps.

    The network's parameters stay as they are; batch norm's statistics and the random state move as in a step.

    Args:
        network: from images (N, C, H, W) to logits.
        images: one batch.
        loss: from logits to a scalar.

    Raises:
        InputError: the network, or a part of it, was given to `torch.compile`, whose graphs save tensors unseen.
    """
    for name, module in network.named_modules():
        if "_orig_mod" in module._modules or module._compiled_call_impl is not None:
            raise InputError(
                f"network{name and '.'}{name} was given to torch.compile, which saves tensors unseen; count those "
                "of the network that it was given."
            )
    own = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *network.buffers())}
    # Tensors are held, lest a later one gets the memory of one that is gone.
    kept: dict[int, Tensor] = {}
    layers: dict[str, int] = {}
    names = {module: name for name, module in network.named_modules()}
    current = [OUTSIDE]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address not in own and address not in kept:
            kept[address] = tensor
            layers[current[-1]] = layers.get(current[-1], 0) + storage.nbytes()
        return tensor

    def enter(module: nn.Module, _: Any) -> None:
        current.append(names[module])

    def leave(*_: Any) -> None:
        current.pop()

    def step(module: nn.Module | None) -> None:
        current[-1] = OUTSIDE if module is None else names[module]

    hooks = []
    for module in _layers(network):
        hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        with (
            torch.enable_grad(),
            announce_steps(step),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        ):
            loss(network(images))
    finally:
        for hook in hooks:
            hook.remove()
    return SavedMemory(len(images), layers)


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The layers and units that are called as modules; a lean body announces its units itself."""
    for child in module.children():
        if isinstance(module, ReActNet) and module.lean and child is module.body:
            continue
        if isinstance(child, ResidualUnit | BinaryConv2d) or not any(True for _ in child.children()):
            yield child
        else:
            yield from _layers(child)
