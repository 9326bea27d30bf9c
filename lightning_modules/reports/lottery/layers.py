"""What each layer keeps at each level, counted in the ticket files and in the trained networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import ones

from bnfree.lightning_modules.experiments.lottery.level_results import LevelResult
from bnfree.lightning_modules.reports.lottery.networks import Networks
from bnfree.tickets import LayerDensity, Masks, checksum, load_ticket, mask_statistics


@dataclass(frozen=True)
class LayerCounts:
    """One layer of one level."""

    mask: LayerDensity
    """What its mask keeps."""
    effective_zeros: int | None
    """Zeros among the effective weights of the trained network; None where there is no checkpoint to count in."""
    bops: int | None
    """Binary operations per image of the dense layer; None if the network cannot be built."""

    @property
    def kept_bops(self) -> int | None:
        """Binary operations that surviving weights take part in: what a machine that skips zeros would have to do."""
        # Every weight of a convolution takes part in as many operations as there are positions.
        return None if self.bops is None else self.bops * self.mask.kept // self.mask.weights

    @property
    def entropy_bits(self) -> float:
        """Bits that a perfect entropy coder needs for mask and signs; a dense layer has one bit a weight."""
        return self.mask.bits_per_weight * self.mask.weights


@dataclass(frozen=True)
class LevelCounts:
    """All prunable layers of one level."""

    level: LevelResult
    """The level."""
    layers: tuple[LayerCounts, ...]
    """In the order of the network."""

    def total(self, name: str) -> int | None:
        """A count over all layers; None if one of them has none.

        Args:
            name: attribute of `LayerCounts`, or of its mask.
        """
        values = [getattr(layer if hasattr(layer, name) else layer.mask, name) for layer in self.layers]
        return None if not values or None in values else sum(values)

    @property
    def density(self) -> float:
        """Kept share of the weights, by the masks."""
        return sum(layer.mask.kept for layer in self.layers) / sum(layer.mask.weights for layer in self.layers)

    @property
    def bits_per_weight(self) -> float:
        """Entropy-coded bits of mask and signs for each weight, every layer with its own code."""
        return sum(layer.entropy_bits for layer in self.layers) / sum(layer.mask.weights for layer in self.layers)


def count_levels(levels: Sequence[LevelResult]) -> tuple[list[LevelCounts], list[str]]:
    """Counts the layers of all levels.

    Args:
        levels: finished levels.

    Returns:
        Counts of the levels whose masks are known, in the order of `levels`, and a line for whatever could not be
        counted or does not fit together.

    Raises:
        InputError: a ticket file that is damaged.
    """
    networks, notes = Networks(), []
    shapes: dict[str, tuple[int, ...]] = {}
    for level in levels:
        if not shapes and level.mask_checksum is not None and level.ticket.is_file():
            shapes = {name: tuple(mask.shape) for name, mask in load_ticket(level.ticket).masks.items()}
    counts = []
    for level in levels:
        masks = masks_of(level, shapes)
        where = f"{level.directory.parent.name}/{level.directory.name}"
        if masks is None:
            notes.append(f"{where} ({level.kind}) has no ticket file; its layers are not counted.")
            continue
        if not masks:
            continue
        if level.mask_checksum not in (None, checksum(masks)):
            notes.append(f"{where} ({level.kind}): its ticket file holds other masks than it has trained with.")
        found = _count(level, masks, networks)
        zeros, pruned = found.total("effective_zeros"), sum(x.mask.weights - x.mask.kept for x in found.layers)
        if zeros is not None and zeros != pruned:
            notes.append(f"{where} ({level.kind}): {zeros} effective weights are 0, but {pruned} are pruned.")
        counts.append(found)
    return counts, [*networks.notes, *notes]


def masks_of(level: LevelResult, shapes: dict[str, tuple[int, ...]]) -> Masks | None:
    """The masks of a level; None without the ticket file that it should have.

    Args:
        level: a finished level.
        shapes: of the prunable layers, which a dense level keeps as a whole.
    """
    if level.mask_checksum is None:
        return {name: ones(shape).bool() for name, shape in shapes.items()}
    return load_ticket(level.ticket).masks if level.ticket.is_file() else None


def _count(level: LevelResult, masks: Masks, networks: Networks) -> LevelCounts:
    zeros, bops = networks.effective_zeros(level.directory), networks.bops(level.directory)
    rows = mask_statistics(masks).layers
    return LevelCounts(level, tuple(LayerCounts(row, zeros.get(row.name), bops.get(row.name)) for row in rows))
