"""The surrogate derivative of a sign, as the lean path is given it by an estimator."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

QUADRATIC, WINDOW, IDENTITY = 0, 1, 2
"""Derivatives that the compiled kernels know: max(0, 2 - 2|v|); 1 where |v| <= 1, else 0; and 1, no sign at all."""

_log = logging.getLogger("bnfree")
_mentioned: set[str] = set()


class Derivative(NamedTuple):
    """Derivative of the sign's estimator, and what the estimator declares about it; see `SignEstimator`."""

    slope: Callable[[Tensor], Tensor]
    """From v to the derivative at v."""
    kernel_code: int | None = None
    """`QUADRATIC` or `WINDOW`, where the slope is one of them."""
    jumps: tuple[float, ...] | None = None
    """Where the slope is not continuous; None: nobody has said."""
    name: str = ""
    """For messages."""

    def has_kernel(self) -> bool:
        """Whether compiled kernels compute it; that they do not is said once. They would be used otherwise."""
        if self.kernel_code is None:
            mention_once(f"estimator {self.name!r} has no kernel_code: its gradients run in plain torch, more slowly.")
        return self.kernel_code is not None

    def can_be_rounded(self) -> bool:
        """Whether its argument may be kept in 16 bits; that it may not is said once."""
        if self.jumps is None:
            mention_once(f"estimator {self.name!r} does not declare its jumps: half_saved leaves its units alone.")
        return self.jumps is not None


def mention_once(message: str) -> None:
    """One line of the log `bnfree`, once for a process."""
    if not torch.compiler.is_compiling() and message not in _mentioned:
        _mentioned.add(message)
        _log.warning(message)
