"""Controls: what a ticket is compared with, to tell whether its mask, its weights or its signs matter.

Each is a pure function of its arguments and a seed, the same in every process, and leaves the global random state
alone. A control that has not done what it says looks like a result, so compare it with the ticket: `overlap` must be at
its chance level.

Source: the sanity checks of Frankle et al., "Pruning neural networks at initialization: why are we missing the mark?"
(ICLR 2021, arXiv 2009.08576).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from bnfree.errors import InputError
from bnfree.tickets.generators import layer_generator
from bnfree.tickets.masks import Masks
from bnfree.tickets.rewinding import Snapshot, seen_weights


def random_masks(masks: Mapping[str, Tensor], seed: int, keep: Literal["layer", "global"] = "layer") -> Masks:
    """Random masks with the densities of given ones.

    Args:
        masks: the ticket's masks.
        seed: of the draw; another seed gives another mask.
        keep: `layer`: as many survivors in each layer, elsewhere; `global`: as many in all, anywhere. Filters may end
            empty.

    Raises:
        InputError: unknown choice.
    """
    if keep not in ("layer", "global"):
        raise InputError(f"keep={keep!r} is not known; choose 'layer' or 'global'.")
    if keep == "layer":
        return {name: _shuffled(mask, layer_generator(seed, name)).view(mask.shape) for name, mask in masks.items()}
    if not masks:
        return {}
    everything = torch.cat([mask.flatten() for mask in masks.values()])
    parts = _shuffled(everything, layer_generator(seed, "")).split([mask.numel() for mask in masks.values()])
    return {name: part.view(mask.shape).clone() for (name, mask), part in zip(masks.items(), parts, strict=True)}


def reinitialize(
    network: nn.Module, snapshot: Mapping[str, Tensor], masks: Mapping[str, Tensor], seed: int
) -> Snapshot:
    """A snapshot whose masked layers have fresh latent weights; all other parameters stay.

    They are normal around 0 with the standard deviation that the layer's latent weights have in the snapshot, so that
    the same learning rate moves them as fast. To draw the other parameters anew too, take a snapshot of a new network.

    Args:
        network: the network that the snapshot belongs to; its weights are not used.
        snapshot: the weights that the ticket starts from.
        masks: the ticket's masks: these layers are drawn, pruned weights included.
        seed: of the draw.

    Raises:
        InputError: masks that do not fit the network or the snapshot.
    """
    result = dict(snapshot)
    for name, *_ in seen_weights(network, snapshot, masks):
        old = snapshot[f"{name}.weight"]
        noise = torch.randn(old.shape, generator=layer_generator(seed, name), dtype=torch.float64)
        result[f"{name}.weight"] = (noise * old.double().std(correction=0)).to(old.dtype)
    return result


def shuffle_signs(
    network: nn.Module, snapshot: Mapping[str, Tensor], masks: Mapping[str, Tensor], seed: int
) -> Snapshot:
    """A snapshot in which the signs of each filter's surviving weights have changed places; all other parameters stay.

    Every filter keeps its numbers of positive and negative survivors, and what the magnitudes say within each sign. The
    signs are those that the layer sees, before and afterwards: in a standardised layer the positive and the negative
    weights are scaled, by one factor each, so that their mean is 0 and takes no sign back.

    Args:
        network: says which layers are standardised; its weights are not used.
        snapshot: the weights that the ticket starts from.
        masks: the ticket's masks.
        seed: of the draw.

    Raises:
        InputError: masks that do not fit the network or the snapshot.
    """
    result = dict(snapshot)
    for name, layer, seen, mask in seen_weights(network, snapshot, masks):
        generator = layer_generator(seed, name)
        weight = seen.clone()
        for row, keep in zip(weight, mask, strict=True):
            kept = row[keep]
            if len(kept) < 2:
                continue
            positive = _shuffled(kept >= 0, generator)
            size = kept.abs()
            if layer.standardize and positive.any() and not positive.all():
                # A weight that is as good as its mean has no magnitude to carry a sign through rounding.
                size = size.clamp(min=1e-3 * float(size.mean()))
                total = size.sum() / 2
                size = torch.where(
                    positive, size * (total / size[positive].sum()), size * (total / size[~positive].sum())
                )
            row[keep] = torch.where(positive, size, -size)
        result[f"{name}.weight"] = weight.to(snapshot[f"{name}.weight"].dtype)
    return result


def _shuffled(values: Tensor, generator: torch.Generator) -> Tensor:
    flat = values.detach().bool().cpu().flatten()
    return flat[torch.randperm(len(flat), generator=generator)]
