"""Silent weights: those whose signs do not flip, and a pull that brings them nearer to where they would.

Source: OvSW (Xiang et al., ECCV 2024, arXiv 2407.05257), "silence awareness decaying"; its scaling of gradients, which
Adam undoes, is not here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bnfree.convolution import BinaryConv2d

DIMS = (1, 2, 3)


@torch.no_grad()
def centred_weight(layer: BinaryConv2d) -> Tensor:
    """The latent weight whose sign the layer takes, (O, I, kH, kW), 0 where it is masked: w - mean, or w if plain."""
    mask = _mask(layer)
    weight = layer.weight * mask
    if not layer.standardize:
        return weight
    return (weight - weight.sum(DIMS, keepdim=True) / mask.sum(DIMS, keepdim=True).clamp(min=1)) * mask


@torch.no_grad()
def silence_gradient(layer: BinaryConv2d, silent: Tensor) -> Tensor:
    """What pulls silent weights towards a change of their signs: the gradient of a penalty, of the shape of the weight.

        plain layers         s w, the published one: weight decay of silent weights alone
        standardised layers  P(s c), c = w - mean of the filter

    s is 1 for silent weights and P takes away what the layer does not see, the parts along c and along a constant, over
    the survivors of a filter. It is var(w) times the gradient of half the sum of the silent weights' squares, in
    units of the filter's standard deviation. A filter in which all are silent is left alone, since to decay it as a
    whole would only shorten it, and a sign changes at the filter's mean and not at 0.

    Args:
        layer: a convolution without a `weight_transform`.
        silent: bool, of the weight's shape.
    """
    centred = centred_weight(layer)
    pull = centred * silent
    if not layer.standardize:
        return pull
    mask = _mask(layer)
    pull = pull - pull.sum(DIMS, keepdim=True) / mask.sum(DIMS, keepdim=True).clamp(min=1)
    squares = centred.square().sum(DIMS, keepdim=True).clamp(min=torch.finfo(centred.dtype).tiny)
    along = (pull * centred).sum(DIMS, keepdim=True) / squares
    return (pull - along * centred) * mask


@torch.no_grad()
def update_flip_rates(rates: Tensor, before: Tensor, after: Tensor, momentum: float) -> None:
    """Moving average of flips, in place: r <- momentum r + (1 - momentum) [the sign has changed].

    Args:
        rates: float, of the weight's shape.
        before: int8 signs -1, 0 (masked), +1 before a step.
        after: the same after it.
        momentum: from 0 to 1.
    """
    rates.mul_(momentum).add_(before * after < 0, alpha=1 - momentum)


def _mask(layer: BinaryConv2d) -> Tensor:
    return torch.ones_like(layer.weight, dtype=torch.bool) if layer.mask is None else layer.mask
