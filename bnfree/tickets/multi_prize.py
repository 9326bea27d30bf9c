"""Multi-prize tickets: weights that are never trained, and masks that are, through a score for each weight.

A forward pass uses the weights of the largest |score|; a backward pass moves the scores of all weights, the pruned ones
included, so that a weight comes back once its score has grown. What is found is a pruned binary network inside a random
one. `bnfree.tickets.scored_convolution` has the rule, its source and how it differs here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError
from bnfree.tickets.generators import layer_generator
from bnfree.tickets.layers import prunable_layers
from bnfree.tickets.learned_masks import MultiPrizeScope, masks_of_scores
from bnfree.tickets.scored_convolution import ScoredConv2d

Learned = Literal["everything", "gains_and_shifts", "scores"]
LEARNED: tuple[Learned, ...] = get_args(Learned)


class MultiPrize:
    """The scores of a network while they are trained.

    The network's prunable layers get a parameter `score` of the weight's shape, uniform within +-1 / sqrt(fan-in), and
    their latent weights are frozen. `update` gives the layers the masks that the scores ask for, which is to be done
    before the first forward pass and after each step of the optimizer; build the optimizer after this object. `close`
    leaves a plain network with its last masks.

    Args:
        network: the network, dense.
        layers: whose masks are trained, by name; None: the `prunable_layers`.
        learned: what is trained beside the scores: `everything` but the latent weights of `layers`; `gains_and_shifts`:
            gains, shifts, slopes and batch norm, no convolution's or classifier's weight; `scores`: nothing.
        seed: of the scores' initial values.

    Raises:
        InputError: an unknown choice, a layer of a class of its own, or one that is pruned already.

    Example:
        >>> from torch.nn import functional as F
        >>> from bnfree.backbones import ReActNet18
        >>> network = ReActNet18(num_classes=10, width=4)
        >>> batches = [(torch.randn(2, 3, 8, 8), torch.tensor([0, 1]))]
        >>> prize = MultiPrize(network)
        >>> prize.update(density=0.2)
        >>> optimizer = torch.optim.Adam((p for p in network.parameters() if p.requires_grad), lr=1e-2)
        >>> for images, labels in batches:
        ...     optimizer.zero_grad()
        ...     F.cross_entropy(network(images), labels).backward()
        ...     _ = optimizer.step()
        ...     prize.update(density=0.2)
        >>> prize.close()
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Mapping[str, BinaryConv2d] | None = None,
        *,
        learned: Learned = "everything",
        seed: int = 0,
    ) -> None:
        if learned not in LEARNED:
            raise InputError(f"learned={learned!r} is not known; choose {' or '.join(map(repr, LEARNED))}.")
        layers = prunable_layers(network) if layers is None else layers
        for name, layer in layers.items():
            if type(layer) is not BinaryConv2d:
                raise InputError(f"{name!r} is a {type(layer).__name__}; scores are trained for BinaryConv2d alone.")
            if layer.mask is not None and not layer.mask.all():
                raise InputError(f"{name!r} is pruned already; train scores in a dense network.")
        frozen = [layer.weight for layer in layers.values()] + _frozen_beside(network, learned)
        self._frozen = [parameter for parameter in frozen if parameter.requires_grad]
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        for name, layer in layers.items():
            bound = layer.weight.shape[1:].numel() ** -0.5
            score = (2 * torch.rand(layer.weight.shape, generator=layer_generator(seed, name)) - 1) * bound
            layer.score = nn.Parameter(score.to(layer.weight))
            layer.__class__ = ScoredConv2d
        self.layers = {name: cast(ScoredConv2d, layer) for name, layer in layers.items()}

    @torch.no_grad()
    def make_signed_constant(self) -> None:
        """Replaces the latent weights by their signs times one number per layer, the standard deviation of its weights.

        Before the first update: signs then never depend on the mask, which does nothing but choose among them.
        """
        for layer in self.layers.values():
            size = layer.weight.std(correction=0)
            layer.weight.copy_(torch.where(layer.weight >= 0, size, -size))

    @property
    def scores(self) -> dict[str, Tensor]:
        """The scores by name of the layer; copies on the CPU."""
        return {name: layer.score.detach().to("cpu", copy=True) for name, layer in self.layers.items()}

    @torch.no_grad()
    def load_scores(self, scores: Mapping[str, Tensor]) -> None:
        """Goes on from `scores`.

        Raises:
            InputError: scores of other layers or shapes.
        """
        shapes = {name: tuple(layer.score.shape) for name, layer in self.layers.items()}
        if {name: tuple(score.shape) for name, score in scores.items()} != shapes:
            raise InputError("the scores are of other layers or shapes than those of this network.")
        for name, layer in self.layers.items():
            layer.score.copy_(scores[name])

    @torch.no_grad()
    def update(self, density: float, scope: MultiPrizeScope = "layer") -> None:
        """Gives every layer the mask that `masks_of_scores` finds; a mask that is there is changed in place.

        Raises:
            InputError: as `masks_of_scores`.
        """
        masks = masks_of_scores({name: layer.score for name, layer in self.layers.items()}, density, scope)
        for name, layer in self.layers.items():
            if layer.mask is None:
                layer.set_mask(masks[name])
            else:
                layer.mask.copy_(masks[name])

    def close(self) -> None:
        """Makes the layers plain ones again, with the masks that they have, and what was frozen trainable."""
        for layer in self.layers.values():
            del layer.score
            layer.__class__ = BinaryConv2d  # type: ignore[assignment]
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self.layers, self._frozen = {}, []


def _frozen_beside(network: nn.Module, learned: Learned) -> list[nn.Parameter]:
    if learned == "everything":
        return []
    if learned == "scores":
        return list(network.parameters())
    weights: list[nn.Parameter] = []
    for module in network.modules():
        if isinstance(module, BinaryConv2d):
            weights.append(cast(nn.Parameter, module.weight))
        elif isinstance(module, _ConvNd | nn.Linear):
            weights += list(module.parameters(recurse=False))
    return weights
