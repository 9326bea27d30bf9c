"""Gradients from losses alone: one coordinate moved at a time, and only the layers behind it run again.

Source: DeepZero (Chen et al., ICLR 2024, arXiv 2310.02025): coordinate-wise estimates on sparse coordinates, features
reused up to the layer that is moved. Deviation: every tensor keeps the same share of its coordinates, where DeepZero
finds shares for the layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

Piece = Callable[[Tensor], Tensor]


@torch.no_grad()
def coordinate_gradients(
    pieces: Sequence[nn.Module],
    x: Tensor,
    loss: Piece,
    active: Sequence[tuple[nn.Parameter, Tensor]],
    step: float = 5e-3,
) -> tuple[Tensor, list[Tensor]]:
    """(f(theta + step e_i) - f(theta)) / step for the active coordinates i of f = loss(pieces(x)).

    A forward pass for each active coordinate, from the first piece that has the parameter on. The parameters are what
    they were afterwards, to the bit.

    Args:
        pieces: modules of which one follows the other; the same input gives the same output, and running them changes
            nothing.
        x: input of the first one.
        loss: from the output of the last one to a number ().
        active: parameters and which of their coordinates are estimated, bool of the same shape.
        step: greater than 0.

    Returns:
        f(theta), and for each parameter its gradient, 0 where it is not active.
    """
    inputs = [x]
    for piece in pieces:
        inputs.append(piece(inputs[-1]))
    base = loss(inputs[-1])
    owners: dict[int, int] = {}
    for number, piece in enumerate(pieces):
        for parameter in piece.parameters():
            owners.setdefault(id(parameter), number)
    gradients = []
    for parameter, chosen in active:
        first, gradient = owners[id(parameter)], torch.zeros_like(parameter)
        for place in map(tuple, chosen.nonzero().tolist()):
            before = parameter[place].clone()
            parameter[place] += step
            y = inputs[first]
            for piece in pieces[first:]:
                y = piece(y)
            gradient[place] = (loss(y) - base) / step
            parameter[place] = before
        gradients.append(gradient)
    return base, gradients


def draw_active(parameters: Iterable[nn.Parameter], share: float, generator: torch.Generator) -> list[Tensor]:
    """Which coordinates are estimated: the same share of each parameter, at least one, drawn without replacement.

    Args:
        parameters: of any shapes.
        share: from 0 to 1.
        generator: of the CPU.

    Returns:
        Bool tensors of the parameters' shapes, on their devices.
    """
    found = []
    for parameter in parameters:
        count = max(1, round(share * parameter.numel()))
        active = torch.zeros(parameter.numel(), dtype=torch.bool)
        active[torch.randperm(parameter.numel(), generator=generator)[:count]] = True
        found.append(active.view(parameter.shape).to(parameter.device))
    return found
