"""Rows (filters, output channels) of binary convolutions that are removed for good, without a change of any output.

In ReActNets a shortcut runs around every convolution, so that no channel lies inside a branch: what a row computes is
added to a channel of the trunk, which goes on without it. A row of gain 0 adds nothing. Hence a row can go, exactly and
alone: the convolution computes those that are left and adds them to their channels; the trunk keeps its width, and the
thresholds, shifts and slopes in front and behind stay what they were.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bnfree.backbones.residual import ResidualUnit
from bnfree.convolution import BinaryConv2d
from bnfree.diagnostics.signs import convolutions
from bnfree.errors import InputError
from bnfree.names import did_you_mean

Rows = Mapping[str, Tensor | Sequence[int]]


def row_layers(network: nn.Module) -> dict[str, BinaryConv2d]:
    """The convolutions whose rows can be removed without changing an output, by name, in the order of the network.

    Those of the residual units, of stride 1 and 2, with real weights (training step 1) as with binary ones. Left out
    are the stem and the 1x1 convolutions of shortcuts, which are the trunk, layers of several groups, and everything
    outside of `ResidualUnit`s.

    Args:
        network: the network; that torch.compile wraps it changes no name.
    """
    units = {id(module.convolution) for module in network.modules() if isinstance(module, ResidualUnit)}
    return {name: layer for name, layer in convolutions(network).items() if id(layer) in units and layer.groups == 1}


def zero_rows(network: nn.Module) -> dict[str, Tensor]:
    """The rows that add nothing because their gain is exactly 0: int64 output channels by layer, without empty ones."""
    found = {}
    for name, layer in row_layers(network).items():
        if layer.gain is not None:
            places = (layer.gain.detach().flatten() == 0).nonzero().flatten()
            found[name] = places if layer.kept_rows is None else layer.kept_rows[places]
    return {name: rows for name, rows in found.items() if len(rows)}


def count_rows(network: nn.Module) -> tuple[int, int]:
    """How many rows the network's `row_layers` have, and how many they had when they were whole."""
    layers = row_layers(network).values()
    return sum(len(layer.weight) for layer in layers), sum(layer.out_channels for layer in layers)


@torch.no_grad()
def remove_rows(network: nn.Module, rows: Rows, optimizers: Iterable[Optimizer] = ()) -> None:
    """Removes rows of convolutions for good: their weights, gains and masks, and the arithmetic that they cost.

    The outputs are those of the network in which the gains of these rows are 0. Parameters become smaller in place, and
    so do their gradients. The state dict then has `kept_rows` beside the weights of such a layer, and loads into a
    network that is whole.

    Of an optimizer's state everything of a parameter's shape loses the same rows, single numbers (step counts) stay,
    and where a parameter's state holds anything else, that parameter begins anew.

    Args:
        network: a network of `ResidualUnit`s, such as `ReActNet18` and `ReActNetA`; changed in place.
        rows: output channels that go, by name of the convolution. One that is gone already is no error.
        optimizers: those that train the network.

    Raises:
        InputError: a name that is none of `row_layers`, or a channel that there is not; nothing has changed then.

    Example:
        >>> from bnfree.backbones import ReActNet18
        >>> network = ReActNet18(num_classes=10, width=8)
        >>> remove_rows(network, {"body.0.0.convolution": [1, 5]})
        >>> network.body[0][0].convolution.weight.shape
        torch.Size([6, 8, 3, 3])
    """
    layers, optimizers = row_layers(network), list(optimizers)
    kept = {}
    for name, gone in rows.items():
        if name not in layers:
            remedy = did_you_mean(name, list(layers)) or f"choose among {', '.join(map(repr, list(layers)[:3]))}."
            raise InputError(
                f"rows: {name!r} is no convolution of {type(network).__name__} whose rows can go; {remedy}"
            )
        kept[name] = _without(layers[name], name, gone)
    for name, channels in kept.items():
        layer = layers[name]
        before = _channels(layer)
        if len(channels) == len(before):
            continue
        shapes = {parameter: parameter.shape for parameter in (layer.weight, layer.gain) if parameter is not None}
        layer.keep_rows(channels)
        places = torch.searchsorted(before, channels)
        for optimizer in optimizers:
            for parameter, shape in shapes.items():
                if parameter in optimizer.state:
                    optimizer.state[parameter] = _of_rows(optimizer.state[parameter], shape, places)


def keep_rows_of(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Removes the rows that another network of the same architecture has lost.

    Args:
        network: a network that has lost none; changed in place.
        state: of the other one.

    Raises:
        InputError: rows that the network's layers cannot lose.
    """
    for name, layer in convolutions(network).items():
        rows = state.get(f"{name}.kept_rows")
        if rows is not None:
            layer.keep_rows(rows)


def _channels(layer: BinaryConv2d) -> Tensor:
    """The output channels that the layer has rows for."""
    return torch.arange(layer.out_channels, device=layer.weight.device) if layer.kept_rows is None else layer.kept_rows


def _without(layer: BinaryConv2d, name: str, gone: Tensor | Sequence[int]) -> Tensor:
    there = _channels(layer)
    rows = torch.as_tensor(gone, device=there.device)
    if rows.numel() and (rows.dtype.is_floating_point or rows.dtype == torch.bool or rows.dim() != 1):
        raise InputError(f"rows[{name!r}] must be numbers of output channels, such as [0, 3].")
    if bool(((rows < 0) | (rows >= layer.out_channels)).any()):
        raise InputError(f"rows[{name!r}] must be numbers from 0 to {layer.out_channels - 1}: its output channels.")
    return there[~torch.isin(there, rows)]


def _of_rows(state: dict[str, Any], shape: torch.Size, places: Tensor) -> dict[str, Any]:
    """What an optimizer keeps of a parameter, for those of its rows."""
    tensors = [value for value in state.values() if isinstance(value, Tensor)]
    if not all(value.shape == shape or value.numel() == 1 for value in tensors):
        return {}
    return {
        key: value[places.to(value.device)].clone() if isinstance(value, Tensor) and value.shape == shape else value
        for key, value in state.items()
    }
