"""Training a part of a network alone."""

from __future__ import annotations

from typing import Literal

from torch import nn

from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError

Freeze = Literal["none", "weights", "body"]


def freeze_parameters(backbone: nn.Module, freeze: Freeze) -> None:
    """Takes their gradients from the parameters that are not trained.

    Args:
        backbone: the network; its head is the module `classifier`.
        freeze: `none`: nothing is frozen, and what is already stays so; `weights`: those of convolutions and linear
            layers outside the head; `body`: everything outside the head.

    Raises:
        InputError: an unknown choice, or a network without a `classifier`.
    """
    if freeze not in ("none", "weights", "body"):
        raise InputError(f"freeze={freeze!r} is not known; choose 'none', 'weights' or 'body'.")
    if freeze == "none":
        return
    kept = {id(parameter) for parameter in _head(backbone, freeze).parameters()}
    for module in backbone.modules():
        weighty = isinstance(module, BinaryConv2d | nn.Conv2d | nn.Linear)
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in kept and (freeze == "body" or (weighty and name == "weight")):
                parameter.requires_grad_(False)


def evaluate_frozen(backbone: nn.Module, freeze: Freeze) -> None:
    """Puts a body that is frozen into evaluation mode, so that nothing in it moves; the head keeps its mode."""
    if freeze != "body":
        return
    head = _head(backbone, freeze)
    mode = head.training
    backbone.eval()
    head.train(mode)


def _head(backbone: nn.Module, freeze: Freeze) -> nn.Module:
    head = getattr(backbone, "classifier", None)
    if not isinstance(head, nn.Module):
        raise InputError(
            f"freeze={freeze!r} finds no module classifier in {type(backbone).__name__}, which it would train; give it "
            "one, or set freeze to 'none'."
        )
    return head
