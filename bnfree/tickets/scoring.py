"""Scores of all weights of a network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError
from bnfree.tickets.masks import layer_mask
from bnfree.tickets.scores import Score, ScoredLayer, get_score, score_name


@torch.no_grad()
def score_weights(
    layers: Mapping[str, BinaryConv2d],
    score: str | type[Score] = "standardized",
    *,
    gradients: Mapping[str, Tensor] | None = None,
    flip_rates: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Scores of all weights, computed in float64 on the CPU, so that equal networks score equally on every device.

    Rounded to float32 at the end: what differs by the order of a summation alone is a tie.

    Args:
        layers: the layers by name, see `prunable_layers`.
        score: `standardized`, `effective`, `latent`, `flip`, `snip`, `random`, the dotted path
            of a subclass of `Score`, or such a class.
        gradients: gradient of the loss with respect to the effective weight of each layer, see `effective_gradients`.
        flip_rates: share of observations in which the sign of each weight flipped, see `FlipCounts`.
        seed: of random scores.

    Returns:
        float32, shape of each weight; -inf where a weight is pruned already.

    Raises:
        InputError: an unknown score, nothing given that it needs, or a weight or score that is not finite.
    """
    chosen = get_score(score)
    scores = {}
    for name, layer in layers.items():
        gradient, flip_rate = _of(layer, name, "gradients", gradients), _of(layer, name, "flip_rates", flip_rates)
        for what, argument, value in (("gradient", "gradients", gradient), ("flip_rate", "flip_rates", flip_rate)):
            if what in chosen.needs and value is None:
                raise InputError(f"{argument} holds nothing for {name!r}, which score={score_name(score)!r} needs.")
        weight, mask = layer.weight.detach().double().cpu(), layer_mask(layer)
        if not weight[mask].isfinite().all():
            raise InputError(
                f"the weight of {name!r} holds values that are not finite; prune a network that has not diverged."
            )
        values = chosen.score(ScoredLayer(name, layer, weight.where(mask, 0), mask, seed, gradient, flip_rate))
        if not values[mask].isfinite().all():
            raise InputError(f"score={score_name(score)!r} gives {name!r} values that are not finite.")
        scores[name] = values.float().masked_fill(~mask, -torch.inf)
    return scores


def _of(layer: BinaryConv2d, name: str, argument: str, given: Mapping[str, Tensor] | None) -> Tensor | None:
    """What the caller has given about a layer, float64 on the CPU."""
    if given is None or name not in given:
        return None
    if given[name].shape != layer.weight.shape:
        raise InputError(
            f"{argument}[{name!r}] has shape {tuple(given[name].shape)}, the weight {tuple(layer.weight.shape)}."
        )
    return given[name].detach().double().cpu()
