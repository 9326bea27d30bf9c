"""The base of the lean path's functions, and what every function of this project gives as its output."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor


class Function(torch.autograd.Function):
    """An autograd function whose signature is read once: PyTorch otherwise reads it in every call."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Keeps the signature of `forward`."""
        super().__init_subclass__(**options)
        cls.forward.__signature__ = inspect.signature(cls.forward)  # type: ignore[attr-defined]


def as_output(made: Tensor) -> Tensor:
    """The tensor that a `forward` returns, which may have been made by operators that work in place.

    While `torch.compile` traces, a copy, which the compiler removes: torch 2.11 takes what was last changed in place
    for a constant and gives the inputs of the function gradients of 0.
    """
    return made.clone() if torch.compiler.is_compiling() else made
