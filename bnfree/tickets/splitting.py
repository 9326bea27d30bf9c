"""A ticket in two parts: locked masks to give away, and a small key mask without which they train to less.

Source: the first scheme of Chen et al. (NeurIPS 2021, arXiv 2111.00162), with magnitudes as the score. They found that
a key of 5 to 15 % of the survivors costs more than a point when it is missing.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bnfree.errors import InputError
from bnfree.tickets.masks import Masks
from bnfree.tickets.ranking import keep_highest, tie_keys
from bnfree.tickets.schedule import kept_count


def split_key(masks: Mapping[str, Tensor], scores: Mapping[str, Tensor], share: float = 0.05) -> tuple[Masks, Masks]:
    """Takes the best survivors of all layers out of masks.

    The weights of the key are not removed from a ticket's tensors: a file that is to be given away with the locked
    masks should hold fresh values, or zeros, where the key was.

    Args:
        masks: the ticket's masks.
        scores: for each layer how good its weights are, comparable between layers, see `score_weights`.
        share: share of the survivors that goes into the key, between 0 and 1.

    Returns:
        The locked masks and the key masks; `join_key` makes the ticket's masks of them.

    Raises:
        InputError: a share out of range, scores that do not fit, or a share that amounts to no weight or to all.
    """
    if not 0 < share < 1:
        raise InputError(f"share={share} must be between 0 and 1: the share of the survivors that goes into the key.")
    whole = {name: mask.detach().cpu().bool() for name, mask in masks.items()}
    for name, mask in whole.items():
        if name not in scores or scores[name].shape != mask.shape:
            raise InputError(f"scores holds nothing of the shape {tuple(mask.shape)} for {name!r}.")
        if scores[name].isnan().any():
            raise InputError(f"scores[{name!r}] holds NaN; split a network that has not diverged.")
    survivors = sum(int(mask.sum()) for mask in whole.values())
    quota = kept_count(survivors, share)
    if not 0 < quota < survivors:
        raise InputError(f"share={share} of {survivors} survivors is {quota} weights; the key needs some but not all.")
    values = torch.cat([scores[name].detach().cpu()[mask] for name, mask in whole.items()])
    chosen = keep_highest(values, tie_keys(0, survivors), quota).split([int(mask.sum()) for mask in whole.values()])
    key_masks = {
        name: torch.zeros_like(mask).masked_scatter_(mask, part)
        for (name, mask), part in zip(whole.items(), chosen, strict=True)
    }
    return {name: mask & ~key_masks[name] for name, mask in whole.items()}, key_masks


def join_key(locked: Mapping[str, Tensor], key_masks: Mapping[str, Tensor]) -> Masks:
    """The masks that `split_key` has taken apart.

    Raises:
        InputError: two parts of other layers or shapes, or with common survivors, as no split has them.
    """
    shapes = [{name: tuple(mask.shape) for name, mask in masks.items()} for masks in (locked, key_masks)]
    if shapes[0] != shapes[1]:
        raise InputError("the locked masks and the key masks are not of the same layers and shapes; give both of one.")
    parts = [{name: mask.detach().cpu().bool() for name, mask in masks.items()} for masks in (locked, key_masks)]
    for name, mask in parts[0].items():
        if bool((mask & parts[1][name]).any()):
            raise InputError(f"key_masks keeps weights of {name!r} that locked keeps too; give the key of these masks.")
    return {name: mask | parts[1][name] for name, mask in parts[0].items()}
