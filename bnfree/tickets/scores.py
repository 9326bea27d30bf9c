"""What makes a weight worth keeping: one number for each weight, higher is kept longer.

Scores that compare weights of different layers need a common unit. The latent weights of a standardised layer have
none: its output does not change when a filter is scaled or shifted, so two layers whose latent weights differ by a
factor of ten would end at densities 0.87 and 0.13 under one threshold. `standardized`, `effective` and `flip` therefore
measure a weight in standard deviations of its filter, and `snip` in units of the loss. A score without a common unit
(`comparable = False`, such as `latent`) is divided by its root mean square in each layer before layers are ranked
together. `magnitude` is |w| without this: what open_lth and `torch.nn.utils.prune` do globally.

In a binary layer the magnitude of a latent weight is its distance from a change of sign: pruning by magnitude removes
the weights that are least decided about their sign.

Sources: Frankle and Carbin (ICLR 2019) for magnitudes, SNIP (Lee et al., ICLR 2019, arXiv 1810.02340), "BNN pruning"
(ISQED 2020) for the frequency of flips. The standardised magnitude is our own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bnfree.convolution import BinaryConv2d, standardize_weight
from bnfree.errors import InputError
from bnfree.plugins import name_of, register, resolve
from bnfree.tickets.generators import layer_generator


@dataclass(frozen=True)
class ScoredLayer:
    """What a score may know about a layer; every tensor has the shape (O, I/groups, kH, kW) and lies on the CPU."""

    name: str
    """Name of the layer in the network."""
    layer: BinaryConv2d
    """The layer itself, for what is not here: `standardize`, `binary_weights`, `gain`, `eps`."""
    weight: Tensor
    """Latent weight, float64."""
    mask: Tensor
    """bool, True where a weight still survives."""
    seed: int
    """Seed of a random score."""
    gradient: Tensor | None
    """Gradient of a loss with respect to the effective weight, float64; None unless given."""
    flip_rate: Tensor | None
    """How often the sign of a weight has flipped, float64 from 0 (never) to 1 (always); None unless given."""

    def prepared(self) -> Tensor:
        """The weight that is binarised, float64: standardised over the survivors, times the root of their number.

        In a plain layer the latent weight. 0 where masked.
        """
        if not self.layer.standardize:
            return self.weight * self.mask
        count = self.mask.sum((1, 2, 3), keepdim=True).clamp(min=1)
        return standardize_weight(self.weight, self.mask, self.layer.eps) * count.sqrt()


class Score:
    """What makes a weight worth keeping.

    A new score is a subclass with a `score`:

        class SmallGradient(Score):
            needs = ("gradient",)

            @staticmethod
            def score(layer):
                return -layer.gradient.abs()

    `prune(network, 0.5, score=SmallGradient, gradients=...)` takes it, and every `score` option its dotted path. One
    with a `name` is found by that, too, once its module has been imported.
    """

    name: ClassVar[str] = ""
    comparable: ClassVar[bool] = True
    """Whether scores of different layers have the same unit."""
    needs: ClassVar[tuple[str, ...]] = ()
    """`gradient` or `flip_rate`, where the score uses what only the caller can give."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.__dict__.get("name"):
            register("score", cls.name, cls)

    @staticmethod
    def score(layer: ScoredLayer) -> Tensor:
        """Scores of a layer's weights, of the weight's shape, floating point; what it gives to pruned ones is unused.

        Must depend on `layer` alone, since every process of a run computes it.
        """
        raise NotImplementedError


class Standardized(Score):
    """|w - mean| / std of the filter's survivors; in a plain layer |w| / root mean square of the filter's survivors."""

    name = "standardized"

    @staticmethod
    def score(layer: ScoredLayer) -> Tensor:
        """The weight that is binarised, in units of its root mean square in the filter; 0 in a filter of zeros."""
        prepared = layer.prepared()
        count = layer.mask.sum((1, 2, 3), keepdim=True).clamp(min=1)
        size = (prepared.square().sum((1, 2, 3), keepdim=True) / count).sqrt()
        return torch.where(size > 0, prepared.abs() / size, 0.0)


class Effective(Score):
    """As `standardized`, times |gain| of the filter: filters that count for little lose more.

    The signs of a binary filter all have the same effective magnitude, so it is that of the real weight behind them. In
    a plain layer |w|, times |gain| where there is one.
    """

    name = "effective"

    @staticmethod
    def score(layer: ScoredLayer) -> Tensor:
        """|gain * (w - mean)| / (std + eps), without the factor 1 / sqrt(fan-in), which would favour narrow layers."""
        gain = layer.layer.gain
        prepared = layer.prepared().abs()
        return prepared if gain is None else prepared * gain.detach().double().abs().cpu()


class Magnitude(Score):
    """|w| of the latent weight, in one unit for all layers: global magnitude pruning of public tools.

    With `scope="global"` and `min_per_filter=0` it keeps what `torch.nn.utils.prune.global_unstructured` keeps with
    `L1Unstructured`, and what open_lth's `sparse_global` keeps, except that its strict `>` prunes one weight more than
    it states, and all that are equal to that one. The unit means little between standardised layers, where a filter's
    scale and mean are free.
    """

    name = "magnitude"

    @staticmethod
    def score(layer: ScoredLayer) -> Tensor:
        """|w|."""
        return layer.weight.abs()


class Latent(Score):
    """|w| of the latent weight; where layers are ranked together, |w| / root mean square of the layer's survivors.

    With `scope="layer"` and `min_per_filter=0` it keeps what `torch.nn.utils.prune.l1_unstructured` keeps in each
    layer. With `scope="global"` it is not the global magnitude pruning of open_lth, which is `magnitude`. In a
    standardised layer both say little: a filter's scale and mean are free.
    """

    name = "latent"
    comparable = False

    @staticmethod
    def score(layer: ScoredLayer) -> Tensor:
        """|w|."""
        return layer.weight.abs()


class Flip(Score):
    """`standardized` times the share of observations in which the sign did not flip; needs `flip_rates`."""

    name = "flip"
    needs = ("flip_rate",)

    @staticmethod
    def score(layer: ScoredLayer) -> Tensor:
        """Weights that go to and fro are undecided, whatever their magnitude at the moment."""
        if layer.flip_rate is None:
            raise ValueError("flip_rate is None")
        return Standardized.score(layer) * (1 - layer.flip_rate)


class Snip(Score):
    """|w * dL/dw| on the effective weight: how much the loss changes when the weight goes; needs `gradients`.

    Equal to |dL/dm| at mask m = 1, with the statistics of the filter held. On the latent weight it would say little:
    there the gradient is that of the surrogate, and the sum of w * dL/dw over a standardised filter is 0.
    """

    name = "snip"
    needs = ("gradient",)

    @staticmethod
    def score(layer: ScoredLayer) -> Tensor:
        """|effective weight * gradient|, comparable between layers since both speak of one loss."""
        if layer.gradient is None:
            raise ValueError("gradient is None")
        return layer.layer.effective_weight().detach().double().cpu().mul(layer.gradient).abs()


class Random(Score):
    """Uniform on [0, 1), from a generator seeded by `seed` and the layer's name: the same in every process."""

    name = "random"

    @staticmethod
    def score(layer: ScoredLayer) -> Tensor:
        """Does not touch the global random state."""
        return torch.rand(layer.weight.shape, generator=layer_generator(layer.seed, layer.name), dtype=torch.float64)


def get_score(score: str | type[Score]) -> type[Score]:
    """The class that a name or a dotted path stands for.

    Raises:
        InputError: no such score, or something that is none.
    """
    found: type[Score] = resolve("score", score)
    if not (isinstance(found, type) and issubclass(found, Score)):
        raise InputError(f"score={score!r} is no score; give a subclass of bnfree.tickets.Score.")
    return found


def score_name(score: str | type[Score]) -> str:
    """What messages and files call a score: its name or dotted path."""
    return score if isinstance(score, str) else name_of("score", score)
