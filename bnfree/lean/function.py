"""The base of the lean path's functions."""

from __future__ import annotations

import inspect
from typing import Any

import torch


class Function(torch.autograd.Function):
    """An autograd function whose signature is read once: PyTorch otherwise reads it in every call."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Keeps the signature of `forward`."""
        super().__init_subclass__(**options)
        cls.forward.__signature__ = inspect.signature(cls.forward)  # type: ignore[attr-defined]
