"""Which layers a ticket is about: the ones that are pruned, chosen by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from bnfree.backbones.residual import ResidualUnit
from bnfree.convolution import BinaryConv2d
from bnfree.diagnostics.signs import binary_layers, convolutions
from bnfree.errors import InputError
from bnfree.layer_calls import find_layers


@dataclass(frozen=True)
class LayerChoice:
    """One convolution or linear layer of a network, and whether it is pruned."""

    name: str
    """Name of the layer in the network."""
    shape: tuple[int, ...]
    """Shape of the weight."""
    weights: int
    """Number of weights."""
    pruned: bool
    """Whether its weights are pruned."""
    reason: str
    """Why, or why not."""


def prunable_layers(
    network: nn.Module, include: Sequence[str] | None = None, exclude: Sequence[str] = ()
) -> dict[str, BinaryConv2d]:
    """The layers whose weights are pruned, by name and in the order of the network.

    By default the convolution of every residual unit, in step 1 of two (real weights) as in step 2, so that the masks
    of one fit the other. Left out are the stem, the classifier, and the 1x1 convolutions of shortcuts, also where these
    are binary: they are small, and what they lose is lost to every later unit. In a network without residual units: the
    convolutions with binary weights, or else every `BinaryConv2d`.

    Args:
        network: the network; that torch.compile wraps it changes no name.
        include: names of layers to prune in place of the default, with `*` and `?` as in file names, such as
            `body.3.*`; `*` stands for every `BinaryConv2d`.
        exclude: names of layers to leave dense, likewise.

    Raises:
        InputError: a pattern that fits no convolution, or nothing left to prune.
    """
    layers = convolutions(network)
    if include is None:
        units = {id(module.convolution) for module in network.modules() if isinstance(module, ResidualUnit)}
        chosen = {name: layer for name, layer in layers.items() if id(layer) in units} or binary_layers(network)
    else:
        chosen = {name: layer for name, layer in layers.items() if _fits(name, include)}
    for argument, patterns in (("include", include or ()), ("exclude", exclude)):
        if isinstance(patterns, str):
            raise InputError(f"{argument}={patterns!r} must be a list of names, such as [{patterns!r}].")
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in layers):
                raise InputError(
                    f"{argument}={pattern!r} fits no convolution of {type(network).__name__}; its convolutions are "
                    f"called {_some(layers)}."
                )
    chosen = {name: layer for name, layer in chosen.items() if not _fits(name, exclude)}
    if not chosen:
        raise InputError(
            f"exclude={list(exclude)} leaves no layer of {type(network).__name__} to prune."
            if layers
            else f"network={type(network).__name__} has no BinaryConv2d, so there is nothing to prune."
        )
    return chosen


def layer_choices(
    network: nn.Module, include: Sequence[str] | None = None, exclude: Sequence[str] = ()
) -> tuple[LayerChoice, ...]:
    """Every convolution and linear layer, with whether it is pruned and why: what a run is to print before it starts.

    Args:
        network: as in `prunable_layers`.
        include: as in `prunable_layers`.
        exclude: as in `prunable_layers`.

    Raises:
        InputError: as in `prunable_layers`.
    """
    pruned = {id(layer) for layer in prunable_layers(network, include, exclude).values()}
    names = {id(layer): name for name, layer in convolutions(network).items()}
    rows = []
    for found, layer in find_layers(network).items():
        name = names.get(id(layer), found)
        weight: Any = layer.weight
        if id(layer) in pruned:
            reason = "included" if include is not None else "convolution of the body"
        elif not isinstance(layer, BinaryConv2d):
            reason = "no BinaryConv2d"
        elif _fits(name, exclude):
            reason = "excluded"
        else:
            reason = "not included" if include is not None else "stem or shortcut"
        rows.append(LayerChoice(name, tuple(weight.shape), weight.numel(), id(layer) in pruned, reason))
    return tuple(rows)


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _some(names: dict[str, BinaryConv2d]) -> str:
    listed = ", ".join(map(repr, list(names)[:3]))
    return f"{listed} and so on" if len(names) > 3 else listed
