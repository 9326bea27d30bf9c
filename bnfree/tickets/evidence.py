"""What the scores `snip` and `flip` need to know: gradients of effective weights, and how often signs have flipped."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnfree.convolution import BinaryConv2d
from bnfree.diagnostics.signs import pack_signs, unpack_signs, weight_signs
from bnfree.errors import InputError
from bnfree.tickets.layers import prunable_layers


def effective_gradients(
    network: nn.Module, losses: Iterable[Callable[[], Tensor]], layers: Mapping[str, BinaryConv2d] | None = None
) -> dict[str, Tensor]:
    """Gradients of losses with respect to the effective weights of a network, summed over the losses.

    The network stays as it is, its `.grad` included; only batch norm's running statistics move, if it is in training
    mode. In a run of several processes the caller has to add up what they find.

    Args:
        network: the network.
        losses: functions that run the network on a batch and give its loss, a tensor of shape ().
        layers: the layers in question, by name; None: the `prunable_layers`.

    Returns:
        For each layer a tensor of the shape, dtype and device of its weight; 0 where a loss does not depend on it.

    Raises:
        InputError: no loss.

    Example:
        >>> from torch.nn import functional as F
        >>> from bnfree.backbones import ReActNet18
        >>> from bnfree.tickets import prune
        >>> network = ReActNet18(num_classes=10, width=4)
        >>> batches = [(torch.randn(2, 3, 8, 8), torch.tensor([0, 1]))]
        >>> losses = (lambda x=x, y=y: F.cross_entropy(network(x), y) for x, y in batches)
        >>> masks = prune(network, 0.5, score="snip", gradients=effective_gradients(network, losses))
    """
    layers = prunable_layers(network) if layers is None else layers
    weights = {name: layer.effective_weight().detach().requires_grad_() for name, layer in layers.items()}
    sums: list[Tensor] | None = None

    def use(weight: Tensor) -> Callable[..., Tensor]:
        def convolve(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = inputs[0]
            return F.conv2d(x, weight.to(x.dtype), None, layer.stride, layer.padding, 1, layer.groups)

        return convolve

    hooks = [layer.register_forward_hook(use(weights[name])) for name, layer in layers.items()]
    try:
        with torch.enable_grad(), _without_compilation():
            for loss in losses:
                found = torch.autograd.grad(loss(), list(weights.values()), materialize_grads=True)
                sums = list(found) if sums is None else [a + b for a, b in zip(sums, found, strict=True)]
    finally:
        for hook in hooks:
            hook.remove()
    if sums is None:
        raise InputError("losses is empty; give one function for each batch.")
    return dict(zip(layers, sums, strict=True))


def _without_compilation() -> AbstractContextManager[Any]:
    # A compiled network may have been traced without the hooks. Where nothing is compiled, the compiler, whose import
    # takes seconds, is left alone.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


class FlipCounts:
    """Counts how often the sign of each weight flips from one observation to the next.

    Args:
        layers: the layers by name, see `prunable_layers`.
    """

    def __init__(self, layers: Mapping[str, BinaryConv2d]) -> None:
        self.layers = dict(layers)
        self.reset()

    def reset(self) -> None:
        """Forgets the counts, so that the rates tell of what happens from now on; remembers the signs of now."""
        self.intervals = 0
        self._signs = {name: weight_signs(layer) for name, layer in self.layers.items()}
        self._counts = {n: torch.zeros_like(signs, dtype=torch.int32) for n, signs in self._signs.items()}

    def observe(self) -> None:
        """Compares the signs with those of the last observation; copies nothing to the host."""
        self.intervals += 1
        for name, layer in self.layers.items():
            signs = weight_signs(layer)
            before = self._signs[name].to(signs.device)
            # A weight that is masked has sign 0, and no flip.
            self._counts[name] = self._counts[name].to(signs.device) + (before * signs < 0)
            self._signs[name] = signs

    def rates(self) -> dict[str, Tensor]:
        """Share of the intervals in which each sign flipped, float32 from 0 to 1; 0 before the first interval."""
        return {name: counts / max(self.intervals, 1) for name, counts in self._counts.items()}

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors for a checkpoint, on the CPU."""
        return {
            "intervals": self.intervals,
            "counts": {name: counts.cpu() for name, counts in self._counts.items()},
            "signs": {name: pack_signs(signs).cpu() for name, signs in self._signs.items()},
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on from a `state_dict`.

        Raises:
            InputError: it is of other layers.
        """
        shapes = {name: layer.weight.shape for name, layer in self.layers.items()}
        if {name: counts.shape for name, counts in state_dict["counts"].items()} != shapes:
            raise InputError("the flip counts are of other layers than those of this network; start a fresh count.")
        self.intervals = int(state_dict["intervals"])
        self._counts = {name: state_dict["counts"][name].clone() for name in shapes}
        self._signs = {name: unpack_signs(state_dict["signs"][name], shape) for name, shape in shapes.items()}
