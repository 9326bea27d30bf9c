"""What training minimises, from logits and labels, by name.

A loss is a callable from logits (N, classes) and labels (N,) to a number, or a class of such that needs no arguments.
One with an argument `label_smoothing` is given that of the classifier.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from bnfree.errors import InputError
from bnfree.plugins import check_call, resolve

Loss = str | Callable[[Tensor, Tensor], Any]
"""A name, a dotted path, the callable itself, or in YAML a class with its arguments (`class_path`, `init_args`)."""


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy, of shape ().

    Args:
        logits: (N, classes).
        labels: int64 (N,).
        label_smoothing: share of the target probability that is spread over all classes.
    """
    return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)


def build_loss(loss: Loss, label_smoothing: float = 0.0) -> Callable[[Tensor, Tensor], Tensor]:
    """The callable that a name or a dotted path stands for.

    Args:
        loss: name, dotted path, class or callable.
        label_smoothing: for losses that have such an argument.

    Raises:
        InputError: no such loss, something that cannot be called with logits and labels, or label smoothing for a loss
            that has none.
    """
    found: Any = resolve("loss", loss)
    if not callable(found):
        raise InputError(f"loss={loss!r} is no loss; give a callable from logits and labels to a number.")
    options = {}
    if label_smoothing:
        if not _takes(found, "label_smoothing"):
            raise InputError(f"label_smoothing={label_smoothing} is not an argument of loss={loss!r}; leave it out.")
        options = {"label_smoothing": label_smoothing}
    try:
        made = found(**options) if isinstance(found, type) else partial(found, **options) if options else found
    except TypeError as error:
        raise InputError(f"loss={loss!r} needs arguments ({error}); give a class or function that does not.") from error
    check_call(made, f"loss={loss!r}", "loss(logits, labels)", None, None)
    return made


def _takes(function: Callable[..., Any], name: str) -> bool:
    try:
        return name in inspect.signature(function).parameters
    except ValueError:
        return False
