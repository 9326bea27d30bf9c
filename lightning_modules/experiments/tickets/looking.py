"""What a ticket is, and what two tickets have in common, counted layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bnfree.errors import InputError
from bnfree.lightning_modules.experiments.tickets.pruned_network import PrunedNetwork, read_pruned_network
from bnfree.lightning_modules.experiments.tickets.target_network import configured_network
from bnfree.tickets import MaskOverlap, Masks, MaskStatistics, effective_zeros, mask_statistics, occupancy, overlap

ALL = "all"
"""Name of what is counted over all layers together."""


@dataclass(frozen=True)
class TicketInfo:
    """What has been counted in a ticket, or in a checkpoint of a pruned network."""

    pruned: PrunedNetwork
    """What the file holds: weights, masks, the ticket's notes, its config."""
    statistics: MaskStatistics
    """What the masks keep."""
    occupied: dict[str, float]
    """Share of the kernels (kH x kW weights between one input channel and one filter) with a survivor, by layer and for
    `all`."""
    zeros: dict[str, int] | None
    """Zeros of each layer's effective weight, counted in the network, by layer and for `all`; None: not counted."""
    why_no_zeros: str | None
    """Why they have not been counted."""

    @property
    def stored_bits(self) -> float:
        """Bits of masks and signs under a perfect entropy coder; a dense binary layer takes 1 bit a weight."""
        return sum(layer.bits_per_weight * layer.weights for layer in self.statistics.layers)


def ticket_info(path: str | Path) -> TicketInfo:
    """Reads a ticket and counts its masks.

    Args:
        path: ticket file, checkpoint of a pruned network, or a directory with one of them.

    Raises:
        InputError: no ticket, or a damaged one.
    """
    pruned = read_pruned_network(path)
    masks = pruned.masks
    shares = {name: occupancy(mask).double().mean().item() for name, mask in masks.items()}
    kernels = {name: mask.shape[0] * mask.shape[1] for name, mask in masks.items()}
    together = sum(shares[name] * count for name, count in kernels.items()) / sum(kernels.values())
    zeros, why_not = _zeros(pruned)
    return TicketInfo(pruned, mask_statistics(masks), {**shares, ALL: together}, zeros, why_not)


def _zeros(pruned: PrunedNetwork) -> tuple[dict[str, int] | None, str | None]:
    if "model" not in pruned.sections:
        return None, "not counted: the file does not say which network it is of"
    try:
        found = configured_network(pruned.sections, given=f"ticket={pruned.path!r}", pruned_file=pruned.path)
        network = found.network
        network.load_state_dict(pruned.state_dict)
    except (InputError, RuntimeError) as error:
        return None, f"not counted: the network cannot be built ({' '.join(str(error).split())[:120]})"
    zeros = effective_zeros(network)
    return {**zeros, ALL: sum(zeros.get(name, 0) for name in pruned.masks)}, None


@dataclass(frozen=True)
class TicketDiff:
    """What two tickets have in common."""

    first: PrunedNetwork
    second: PrunedNetwork
    layers: dict[str, MaskOverlap]
    """Overlap of the masks, by layer that both have in the same shape."""
    total: MaskOverlap
    """The same over all of these layers."""
    flips: dict[str, tuple[int, int]]
    """How many common survivors start with another sign, and how many there are, by layer and for `all`."""
    weights: tuple[str, ...]
    """Tensors that both have in the same shape, among the weights that training starts from."""
    differing: tuple[str, ...]
    """Those of them that are not equal bit for bit."""

    @property
    def only_in(self) -> dict[str, list[str]]:
        """Layers that only one has, or that have another shape in the other: of `A`, the first, and `B`."""
        sides = {"A": self.first, "B": self.second}
        return {side: [name for name in one.masks if name not in self.layers] for side, one in sides.items()}


def ticket_diff(first: str | Path, second: str | Path) -> TicketDiff:
    """Compares two tickets, or checkpoints of pruned networks.

    Args:
        first: ticket file, checkpoint or directory; messages call it A.
        second: another one, B.

    Raises:
        InputError: no ticket, or two without a common layer.
    """
    a, b = read_pruned_network(first, "A"), read_pruned_network(second, "B")
    one, two = a.masks, b.masks
    common = [name for name, mask in one.items() if name in two and two[name].shape == mask.shape]
    if not common:
        raise InputError(
            f"A={str(first)!r} and B={str(second)!r} have no pruned layer of the same name and shape; give tickets of "
            "the same architecture and width."
        )
    layers = {name: overlap({name: one[name]}, {name: two[name]}) for name in common}
    total = overlap({name: one[name] for name in common}, {name: two[name] for name in common})
    flips = {name: _flips(name, one, two, a.start, b.start) for name in common}
    flips[ALL] = sum(count for count, _ in flips.values()), sum(count for _, count in flips.values())
    weights = [
        name
        for name, tensor in a.start.items()
        if name in b.start and b.start[name].shape == tensor.shape and not name.endswith(".mask")
    ]
    differing = [name for name in weights if not torch.equal(a.start[name], b.start[name])]
    return TicketDiff(a, b, layers, total, flips, tuple(weights), tuple(differing))


def _flips(
    name: str, one: Masks, two: Masks, first: Mapping[str, Tensor], second: Mapping[str, Tensor]
) -> tuple[int, int]:
    both = one[name] & two[name]
    ours, theirs = (weights[f"{name}.weight"][both] >= 0 for weights in (first, second))
    return int((ours != theirs).sum()), int(both.sum())
