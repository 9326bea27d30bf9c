"""What the convolutions and linear layers of a network do with one image: shapes, operations, binary inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from bnfree.autocast import without_autocast
from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError


@dataclass(frozen=True)
class LayerCall:
    """One call of one layer."""

    input_shape: tuple[int, ...]
    """(C, H, W) of the input, or (F,)."""
    output_shape: tuple[int, ...]
    """(C, H, W) of the output, or (F,)."""
    macs: int
    """Multiply-accumulates, padded positions included."""
    binary_input: bool
    """Whether every value of the input is exactly -1 or +1."""


def find_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The convolutions and linear layers of a network by name, subclasses included."""
    return {n: m for n, m in model.named_modules() if isinstance(m, (BinaryConv2d, _ConvNd, nn.Linear))}


def record_calls(
    model: nn.Module, layers: dict[str, nn.Module], image_shape: tuple[int, int, int]
) -> dict[str, list[LayerCall]]:
    """Lets the network process one random image, in evaluation mode and without gradients.

    The model is left as it was: its modes, parameters, buffers and gradients, and the global random state.

    Args:
        model: the network, from images (N, C, H, W) to anything.
        layers: those of its layers to record, by name.
        image_shape: (C, H, W) of the image.

    Returns:
        The calls of each layer, in order.

    Raises:
        InputError: the network cannot process such an image.
    """
    calls: dict[str, list[LayerCall]] = {name: [] for name in layers}
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    # Random, because an image of zeros could make a real activation look binary.
    image = torch.randn(1, *image_shape, generator=torch.Generator().manual_seed(0)).to(like.device, like.dtype)
    modes = [(module, module.training) for module in model.modules()]
    handles = []
    try:
        for name, layer in layers.items():
            handles.append(layer.register_forward_hook(_recorder(calls[name]), with_kwargs=True))
        # Not by eval(), which a network may have overridden to freeze or to fuse something.
        for module, _ in modes:
            module.training = False
        with torch.no_grad(), without_autocast(like.device):
            model(image)
    except RuntimeError as error:
        reason = next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), "no reason given")
        raise InputError(
            f"image_shape={image_shape} does not go through {type(model).__name__} ({reason}); give the (C, H, W) of "
            "the images that it is made for."
        ) from error
    finally:
        for module, training in modes:
            module.training = training
        for handle in handles:
            handle.remove()
    return calls


def _recorder(calls: list[LayerCall]) -> Any:
    def record(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        x: Tensor = args[0] if args else next(iter(kwargs.values()))
        weight: Any = layer.weight
        # Every weight of a convolution acts once at each position of the output; of a transposed one, of the input.
        channels = layer.out_channels if isinstance(layer, BinaryConv2d) else weight.shape[0]
        positions = (x if isinstance(layer, _ConvTransposeNd) else output).numel() // channels
        binary_input = bool((x.abs() == 1).all())
        calls.append(LayerCall(tuple(x.shape[1:]), tuple(output.shape[1:]), positions * weight.numel(), binary_input))

    return record
