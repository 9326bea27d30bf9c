"""Which parameters weight decay touches."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from bnfree.activations import RPReLU
from bnfree.binarize import RSign
from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError

WeightDecayOn = Literal["convolutions", "public_code", "all"]


def parameter_groups(module: nn.Module, weight_decay_on: WeightDecayOn) -> list[dict[str, Any]]:
    """Two optimizer groups, `decayed` with the optimizer's weight decay and `undecayed` with none.

    Args:
        module: whose trainable parameters are grouped, in their order.
        weight_decay_on: `convolutions`: latent weights of all convolutions, nothing else; `public_code`: those, the
            gains and the shifts of RSign and RPReLU, as the public BNN_NoBN code does by taking every 4-D tensor;
            `all`: everything.

    Raises:
        InputError: unknown choice, or nothing to train.
    """
    if weight_decay_on not in ("convolutions", "public_code", "all"):
        raise InputError(
            f"weight_decay_on={weight_decay_on!r} is not known; choose 'convolutions', 'public_code' or 'all'."
        )
    decayed_ids: set[int] = set()
    for child in module.modules():
        if weight_decay_on == "all":
            names = [name for name, _ in child.named_parameters(recurse=False)]
        elif isinstance(child, BinaryConv2d | nn.Conv2d):
            names = ["weight"] if weight_decay_on == "convolutions" else ["weight", "gain"]
        elif weight_decay_on == "public_code" and isinstance(child, RSign | RPReLU):
            names = ["shift", "shift_in", "shift_out"]
        else:
            names = []
        decayed_ids |= {id(getattr(child, name)) for name in names if getattr(child, name, None) is not None}
    trainable = [p for p in module.parameters() if p.requires_grad]
    if not trainable:
        raise InputError("the model has no parameter that requires a gradient, so there is nothing to train.")
    decayed = [p for p in trainable if id(p) in decayed_ids]
    undecayed = [p for p in trainable if id(p) not in decayed_ids]
    groups: list[dict[str, Any]] = []
    if decayed:
        groups.append({"params": decayed, "name": "decayed"})
    if undecayed:
        groups.append({"params": undecayed, "name": "undecayed", "weight_decay": 0.0})
    return groups
