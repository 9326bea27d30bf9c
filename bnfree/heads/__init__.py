"""From the pooled features of a network to its logits, by name.

A head is a callable from the number of features and of classes to a module from (N, features) to (N, classes); a class
of modules with such a constructor is one. It becomes the network's `classifier`, which adaptive gradient clipping
leaves out and which has no binary weights. A head that is a linear layer when it is evaluated says so to packing by a
method `folded()`, which gives weight (classes, features) and bias (classes,); any other keeps the network from being
packed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnfree.errors import InputError
from bnfree.plugins import check_call, resolve

Head = str | Callable[[int, int], nn.Module]
"""A name, a dotted path, the callable itself, or in YAML a class with its arguments (`class_path`, `init_args`)."""


def linear(features: int, num_classes: int) -> nn.Linear:
    """A linear layer with a bias, as in all published networks."""
    return nn.Linear(features, num_classes)


class Cosine(nn.Module):
    """Logits are a learned scale times the cosine between the features and a vector for each class.

    The norm of the features, which grows with what is in the image and drifts without normalisation, has no part in
    them. Source: Gidaris and Komodakis, CVPR 2018 (arXiv 1804.09458), with their initial scale 10.

    Args:
        features: number of features.
        num_classes: number of classes.

    Shape: (N, features) to (N, num_classes); `weight` (num_classes, features), `scale` ().
    """

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, features) * features**-0.5)
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, num_classes) of features (N, features)."""
        return self.scale * F.linear(F.normalize(features), F.normalize(self.weight))


def build_head(head: Head, features: int, num_classes: int) -> nn.Module:
    """The module that a name, a dotted path or a callable stands for.

    Raises:
        InputError: no such head, something that is no module, or a callable that takes other arguments.
    """
    found = resolve("head", head)
    if callable(found):
        check_call(found, f"head={head!r}", "head(features, num_classes)", features, num_classes)
    module: Any = found(features, num_classes) if callable(found) else found
    if not isinstance(module, nn.Module):
        raise InputError(f"head={head!r} is no head; give a callable from features and classes to a module.")
    return module


def fold_head(head: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight (classes, features) and bias (classes,) of a head that is a linear layer when it is evaluated.

    Raises:
        InputError: another one.
    """
    folded: Any = getattr(head, "folded", None)
    if folded is not None:
        weight, bias = folded()
    elif type(head) is nn.Linear:
        weight, bias = head.weight, head.bias
    else:
        raise InputError(
            f"model has the head {type(head).__name__}, which is no linear layer; pack a network with head='linear'."
        )
    bias = torch.zeros(len(weight)) if bias is None else bias.detach().cpu().float()
    return weight.detach().cpu(), bias.clone()
