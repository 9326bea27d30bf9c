"""What masks look like: densities, emptied filters and layers, and how much two masks have in common."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bnfree.diagnostics.signs import convolutions
from bnfree.errors import InputError


@dataclass(frozen=True)
class LayerDensity:
    """The mask of one layer, or of all together."""

    name: str
    """Name of the layer; `all` for all together."""
    weights: int
    """Number of weights."""
    kept: int
    """Number of survivors."""
    share: float
    """Share of the survivors of all layers that are here; 0 if there are none anywhere."""
    filters: int
    """Number of output filters."""
    empty_filters: int
    """Filters without a survivor."""
    empty_layers: int
    """Layers without a survivor."""

    @property
    def density(self) -> float:
        """Share of the weights that survive."""
        return self.kept / self.weights

    @property
    def bits_per_weight(self) -> float:
        """Bits that a perfect entropy coder needs for the mask and the signs of the survivors, for each weight.

        H(d) + d at density d: below the 1 bit of a dense binary layer only for d < 0.227.
        """
        d = self.density
        entropy = -d * math.log2(d) - (1 - d) * math.log2(1 - d) if 0 < d < 1 else 0.0
        return entropy + d


@dataclass(frozen=True)
class MaskStatistics:
    """Statistics of masks."""

    layers: tuple[LayerDensity, ...]
    """One for each layer."""
    total: LayerDensity
    """All layers together."""


def mask_statistics(masks: Mapping[str, Tensor]) -> MaskStatistics:
    """Counts what masks keep.

    Raises:
        InputError: no mask.
    """
    if not masks:
        raise InputError("masks is empty; give the mask of one layer at least.")
    everything = sum(int(mask.sum()) for mask in masks.values())
    rows = []
    for name, mask in masks.items():
        kept = int(mask.sum())
        empty = int((~mask.bool().flatten(1).any(1)).sum())
        share = kept / everything if everything else 0.0
        rows.append(LayerDensity(name, mask.numel(), kept, share, len(mask), empty, int(kept == 0)))
    sums = {f: sum(getattr(row, f) for row in rows) for f in ("weights", "filters", "empty_filters", "empty_layers")}
    return MaskStatistics(tuple(rows), LayerDensity("all", kept=everything, share=float(everything > 0), **sums))


@torch.no_grad()
def effective_zeros(network: nn.Module) -> dict[str, int]:
    """How many weights of each convolution are 0 where it counts: in `effective_weight()`, not in the latent weight.

    In a binary layer exactly the pruned ones, as long as no gain is 0. A real weight may also be 0 by itself.
    """
    return {
        name: layer.weight.numel() - int(layer.effective_weight().count_nonzero())
        for name, layer in convolutions(network).items()
    }


def effective_density(network: nn.Module, layers: Iterable[str]) -> float:
    """Share of the weights of some layers that are not 0 where it counts, see `effective_zeros`.

    Args:
        network: the network.
        layers: names of the layers, one at least.
    """
    names, zeros, found = list(layers), effective_zeros(network), convolutions(network)
    return 1 - sum(zeros[name] for name in names) / sum(found[name].weight.numel() for name in names)


@dataclass(frozen=True)
class MaskOverlap:
    """What two masks have in common, and what two masks of the same densities would have by chance."""

    weights: int
    """Number of weights."""
    first: int
    """Survivors of the first mask."""
    second: int
    """Survivors of the second mask."""
    both: int
    """Weights that survive in both."""
    chance_both: float
    """Expected number of them if each mask were shuffled within its layers, the sum over layers of first * second /
    weights: what masks have in common that agree in their layers' densities alone."""
    chance_both_global: float
    """The same if each mask were shuffled over all layers together: first * second / weights."""

    @property
    def intersection(self) -> float:
        """Share of the smaller mask's survivors that survive in the other one too; 0 without survivors."""
        return self.both / max(min(self.first, self.second), 1)

    @property
    def jaccard(self) -> float:
        """Survivors of both over survivors of either; 1 if neither has any."""
        return _jaccard(self.both, self.first, self.second)

    @property
    def chance_jaccard(self) -> float:
        """The Jaccard index at `chance_both`; d^2 / (2d - d^2) for two masks of density d."""
        return _jaccard(self.chance_both, self.first, self.second)

    @property
    def hamming(self) -> float:
        """Share of the weights whose fate differs; Early-Bird tickets are drawn when it stays below 0.1."""
        return (self.first + self.second - 2 * self.both) / self.weights


def overlap(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> MaskOverlap:
    """Compares two masks of the same layers.

    Args:
        first: masks by name of the layer.
        second: masks of the same names and shapes.

    Raises:
        InputError: no masks, or other names or shapes.
    """
    shapes = [{name: tuple(mask.shape) for name, mask in masks.items()} for masks in (first, second)]
    if not first or shapes[0] != shapes[1]:
        raise InputError("the two masks are not of the same layers and shapes, so they cannot be compared.")
    weights = kept_first = kept_second = both = 0
    by_chance = 0.0
    for name, mask in first.items():
        a, b = mask.bool().cpu(), second[name].bool().cpu()
        of_a, of_b = int(a.sum()), int(b.sum())
        weights, kept_first, kept_second = weights + a.numel(), kept_first + of_a, kept_second + of_b
        both += int((a & b).sum())
        by_chance += of_a * of_b / a.numel()
    return MaskOverlap(weights, kept_first, kept_second, both, by_chance, kept_first * kept_second / weights)


def hamming_distance(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Share of the weights that survive in one of two masks only, from 0 to 1.

    Raises:
        InputError: masks of other layers or shapes.
    """
    return overlap(first, second).hamming


def _jaccard(both: float, first: int, second: int) -> float:
    either = first + second - both
    return both / either if either else 1.0
