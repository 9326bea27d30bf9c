"""Gradients of gradients are refused with a sentence, where they would silently be wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bnfree.errors import InputError


class _Once(torch.autograd.Function):
    """Passes gradients on; differentiating them again raises."""

    @staticmethod
    def forward(*tensors: Tensor) -> tuple[Tensor, ...]:
        """Gives all but the first, which only ties them to the graph."""
        return tuple(tensor.view_as(tensor) for tensor in tensors[1:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        """Keeps nothing."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        """Refuses."""
        raise InputError(
            "lean=True has no gradients of gradients (create_graph=True); set network.lean = False before the forward."
        )


def once(gradient: Tensor, results: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    """What a backward returns: `results`, which cannot be differentiated again.

    Args:
        gradient: the incoming gradient.
        results: gradients of the inputs.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or not gradient.requires_grad:
        return tuple(results)
    tied = iter(_Once.apply(gradient, *(result.detach() for result in results if result is not None)))
    return tuple(None if result is None else next(tied) for result in results)
