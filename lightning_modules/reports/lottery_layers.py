"""What each layer keeps at each level, counted in the ticket files and in the trained networks."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn, ones

from bnfree.costs import count_ops
from bnfree.errors import InputError
from bnfree.lightning_modules.experiments.lottery.level_results import LevelResult
from bnfree.lightning_modules.training.network import load_weights, network_of
from bnfree.lightning_modules.training.run_directory import CHECKPOINTS, CONFIG, latest_config
from bnfree.tickets import LayerDensity, Masks, checksum, effective_zeros, load_ticket, mask_statistics


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
    networks, notes = LevelNetworks(), []
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


def _count(level: LevelResult, masks: Masks, networks: LevelNetworks) -> LevelCounts:
    zeros, bops = networks.effective_zeros(level.directory), networks.bops(level.directory)
    rows = mask_statistics(masks).layers
    return LevelCounts(level, tuple(LayerCounts(row, zeros.get(row.name), bops.get(row.name)) for row in rows))


class LevelNetworks:
    """The trained networks of a run's levels; each architecture is built once, however many levels have trained it.

    A report does not fail because a class of the user's has moved, or a checkpoint was removed to make room: what
    cannot be counted is left out.

    Attributes:
        notes: why something has been left out, each reason once.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._built: dict[str, _Built | None] = {}

    def effective_zeros(self, directory: Path) -> dict[str, int]:
        """Zeros among the effective weights of each convolution, in the last checkpoint; empty if it is not to be had.

        Args:
            directory: the level's folder, a run directory.
        """
        built = self._of(directory)
        if built is None:
            return {}
        network = copy.deepcopy(built.network)
        try:
            load_weights(network, built.prefix, str(directory / CHECKPOINTS / "last.ckpt"), weights_only=True)
        except InputError as error:
            self._note(f"Zeros are not counted where a checkpoint is missing or does not fit: {error}")
            return {}
        return effective_zeros(network)

    def bops(self, directory: Path) -> dict[str, int]:
        """Binary operations per image of each layer, pruned weights included; empty if the network is not to be had.

        Args:
            directory: the level's folder, a run directory.
        """
        built = self._of(directory)
        return {} if built is None else built.bops

    def _of(self, directory: Path) -> _Built | None:
        if not (directory / CONFIG).is_file():
            self._note(f"Zeros and operations are not counted where a level has no {CONFIG}, as in {directory}.")
            return None
        config = latest_config(directory)
        key = _architecture(config)
        if key not in self._built:
            try:
                # Building draws weights, which are of no use here.
                with torch.random.fork_rng():
                    self._built[key] = _Built(*network_of(config))
            except Exception as error:
                # The network is the user's own code, and anything may be wrong with it by now.
                self._note(f"Zeros and operations are not counted, for the network cannot be built: {error}")
                self._built[key] = None
        return self._built[key]

    def _note(self, line: str) -> None:
        if line.partition(":")[0] not in {note.partition(":")[0] for note in self.notes}:
            self.notes.append(" ".join(line.split()))


class _Built:
    def __init__(self, network: nn.Module, prefix: str, image_shape: tuple[int, ...]) -> None:
        self.network, self.prefix = network, prefix
        self.bops = {row.name: row.bops for row in count_ops(network, image_shape).rows}


def _architecture(config: Path) -> str:
    """What decides the network and its images: equal for all levels of a run, whatever they start from."""
    content: dict[str, Any] = yaml.safe_load(config.read_text(encoding="utf-8"))
    model = content.get("model") or {}
    backbone = (model.get("init_args") or {}).get("backbone")
    return json.dumps([model if backbone is None else backbone, content.get("data")], sort_keys=True, default=str)
