"""The layer of anybody's network that gives the logits, and how many classes it tells apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from bnfree.errors import InputError

NAMES = ("classifier", "fc", "head", "heads")
SIZES = (32, 224, 64, 28, 8)


def named_classifier(network: nn.Module) -> nn.Module | None:
    """The classifier as timm's networks give it (`get_classifier()`), or else under a usual name.

    Args:
        network: any network.

    Returns:
        A module with parameters or, where nothing in it is trained, with buffers: of `get_classifier()`, `classifier`
        (ours, torchvision's, Hugging Face's), `fc` (ResNets), `head` or `heads` (transformers); None without one.
    """
    get_classifier = getattr(network, "get_classifier", None)
    found = [get_classifier()] if callable(get_classifier) else []
    found += [getattr(network, name, None) for name in NAMES]
    return next((m for m in found if isinstance(m, nn.Module) and m.state_dict()), None)


class LastLinear:
    """The last `nn.Linear` that a network uses, which is not always the last that it holds.

    Args:
        network: any network; its forward passes are watched until `release` is called.

    Raises:
        InputError: no `nn.Linear` in it; some of its layers are named, of which one can be chosen.
    """

    def __init__(self, network: nn.Module) -> None:
        layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
        if not layers:
            modules = [(name, module) for name, module in network.named_modules() if name]
            names = [name for name, module in modules if any(True for _ in module.parameters(recurse=False))]
            raise InputError(
                f"{type(network).__name__} has no get_classifier(), no attribute {', '.join(NAMES[:-1])} or "
                f"{NAMES[-1]}, and no nn.Linear; its last layers are {', '.join(map(repr, names[-3:])) or 'none'}."
            )
        self.layer: nn.Linear | None = layers[0] if len(layers) == 1 else None
        self._hooks: list[RemovableHandle] = []
        if self.layer is None:
            self._hooks = [layer.register_forward_hook(self._use) for layer in layers]

    def _use(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.layer = layer if isinstance(layer, nn.Linear) else self.layer

    def release(self) -> None:
        """Watches no longer."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def num_classes_of(network: nn.Module) -> int | None:
    """The number of classes of anybody's network; None if it cannot be known.

    That is its integer attribute `num_classes`, or else the width of its output for a grey image of one of the usual
    sizes. The network is left as it was: modes, parameters, buffers, and the global random state.

    Args:
        network: from images (N, C, H, W) to logits (N, num_classes).

    Example:
        >>> num_classes_of(nn.Sequential(nn.Conv2d(3, 7, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
        7
    """
    given = getattr(network, "num_classes", None)
    if isinstance(given, int):
        return given
    found = _tried(network)
    return None if found is None else found[1]


def in_channels_of(network: nn.Module) -> int | None:
    """The number of channels of the images that anybody's network takes; None if it cannot be known.

    That is its integer attribute `in_channels`, or else that of its first convolution if such an image goes through the
    network, which is left as it was.

    Args:
        network: from images (N, C, H, W) to logits (N, num_classes).

    Example:
        >>> in_channels_of(nn.Sequential(nn.Conv2d(3, 7, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
        3
    """
    given = getattr(network, "in_channels", None)
    if isinstance(given, int):
        return given
    found = _tried(network)
    return None if found is None else found[0]


def _tried(network: nn.Module) -> tuple[int, int] | None:
    """Channels of an image and width of the logits that it gives; None if no image of a usual size goes through."""
    first = next((module for module in network.modules() if isinstance(module, _ConvNd)), None)
    like = next((p for p in network.parameters() if p.is_floating_point()), None)
    if first is None or like is None or nn.parameter.is_lazy(like):
        return None
    modes = [(module, module.training) for module in network.modules()]
    try:
        for module, _ in modes:
            module.training = False
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for size in SIZES:
                try:
                    output = network(like.new_zeros(1, first.in_channels, size, size))
                except (RuntimeError, ValueError, AssertionError):
                    # Not of this size: a network that flattens its images takes one alone.
                    continue
                if isinstance(output, Tensor) and output.dim() == 2:
                    return first.in_channels, int(output.shape[1])
    finally:
        for module, training in modes:
            module.training = training
    return None
