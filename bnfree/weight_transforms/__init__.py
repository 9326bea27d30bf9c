"""From the latent weight of a convolution to what is standardised and binarised, by name.

A transform is a class of modules whose constructor takes nothing, from a weight (O, I, kH, kW) to one of that shape, or
a plain function of that kind. It acts before standardisation and mask, on the convolutions that can be binary, and is
there with real and with binary weights, so that step 2 loads step 1 strictly. Parameters of its own are trained
without weight decay, unless `weight_decay_on` is `all`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from bnfree.errors import InputError
from bnfree.plugins import resolve

KIND = "weight_transform"
WeightTransform = str | Callable[..., Any]
"""A name, a dotted path, the class or the function itself."""


class FunctionTransform(nn.Module):
    """A plain function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, weight: Tensor) -> Tensor:
        """What the function makes of a weight."""
        return self.function(weight)


def build_transform(transform: WeightTransform) -> nn.Module:
    """A module of its own for one layer.

    Raises:
        InputError: no such transform, or something that is none.
    """
    found = resolve(KIND, transform, KIND)
    if isinstance(found, type) and issubclass(found, nn.Module):
        try:
            module: nn.Module = found()
        except TypeError as error:
            raise InputError(f"weight_transform={transform!r} needs arguments ({error}); give one without.") from error
        return module
    if not callable(found) or isinstance(found, type):
        raise InputError(f"weight_transform={transform!r} is no transform; give a class of modules or a function.")
    return FunctionTransform(found)
