"""A penalty on weights whose distribution is lopsided or has other tails than wanted: skewness and kurtosis.

Source: Xu et al., "EQ-Net: elastic quantization neural networks" (ICCV 2023, arXiv 2308.07650) and its code, of which
this is the first half: a kurtosis of 1.8 is that of a uniform law, which quantises well; one of +-1 has 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bnfree.convolution import BinaryConv2d, standardize_weight
from bnfree.errors import InputError

UNIFORM = 1.8


def skewness_and_kurtosis(weight: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Third and fourth central moment in units of the standard deviation, of all elements together.

    Args:
        weight: any shape.
        mask: same shape, bool: elements that count; None: all.

    Returns:
        Twice shape (); neither changes with a factor above 0 or an amount that is added to all elements.
    """
    values = weight.flatten() if mask is None else weight[mask]
    centred = values - values.mean()
    scaled = centred / centred.square().mean().clamp(min=torch.finfo(weight.dtype).tiny).sqrt()
    return scaled.pow(3).mean(), scaled.pow(4).mean()


def layers_with_shape(network: nn.Module) -> dict[str, nn.Module]:
    """Convolutions and linear layers with trained weights by name, without the first one."""
    kinds = (BinaryConv2d, nn.Conv2d, nn.Linear)
    found = {name: m for name, m in network.named_modules() if isinstance(m, kinds) and m.weight.requires_grad}
    return dict(list(found.items())[1:])


def weight_shape_penalty(
    layers: Mapping[str, nn.Module],
    standardized: bool = False,
    skewness: float = 1.0,
    kurtosis: float = 0.015,
    target: float = UNIFORM,
) -> tuple[Tensor, dict[str, Tensor]]:
    """skewness * mean(skew^2) + kurtosis * mean((kurt - target)^2), means over the layers.

    Args:
        layers: convolutions and linear layers by name.
        standardized: of the standardised weights in place of the latent ones, where a layer standardises.
        skewness: weight of the first term.
        kurtosis: weight of the second one.
        target: the kurtosis that is wanted.

    Returns:
        The penalty, of shape (), and the kurtosis of each layer. Of a layer with a mask the survivors count.

    Raises:
        InputError: no layer.
    """
    if not layers:
        raise InputError("layers holds none whose weights have a shape; give a network with two trained layers.")
    skews, kurtoses = [], {}
    for name, module in layers.items():
        weight: Tensor = module.weight  # type: ignore[assignment]
        mask: Tensor | None = getattr(module, "mask", None)
        if standardized and getattr(module, "standardize", False):
            weight = standardize_weight(weight, mask)
        skew, kurtoses[name] = skewness_and_kurtosis(weight, mask)
        skews.append(skew)
    tails = torch.stack(list(kurtoses.values()))
    penalty = skewness * torch.stack(skews).square().mean() + kurtosis * (tails - target).square().mean()
    return penalty, {name: value.detach() for name, value in kurtoses.items()}
