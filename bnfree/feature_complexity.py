"""How many different features the filters of a layer are: alike ones are merged until the rest are not.

Source: Chen et al., "Going beyond neural network feature similarity: the network feature complexity and its
interpretation using category theory" (iterative feature merging, ICLR 2024, arXiv 2310.06756). Deviations: what enters
a channel is averaged and what leaves it is summed, which also holds for activations that are not homogeneous. Here the
number is measured; channels inside branches, which can go, are merged by `bnfree.compression.merging`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError


def merge_channels(
    incoming: Tensor, outgoing: Tensor, beta: float = 0.1, max_ratio: float = 1.0
) -> tuple[Tensor, Tensor, list[list[int]]]:
    """Merges channels while the two most alike ones are closer than `beta` times the largest distance at the start.

    The distance of two channels is that of their rows of `incoming` and columns of `outgoing`, squared and summed.

    Args:
        incoming: what each channel is made of, (C, ...).
        outgoing: what is made of the channels, (O, C, ...).
        beta: 0 merges only channels that are equal.
        max_ratio: greatest share of the channels that may go.

    Returns:
        `incoming` of the channels that are left (M, ...), means of those that were merged; `outgoing` (O, M, ...),
        sums; and which channels each of them stands for.

    Raises:
        InputError: numbers of channels that differ, or a value out of range.
    """
    if incoming.shape[0] != outgoing.shape[1]:
        raise InputError(f"incoming has {incoming.shape[0]} channels, outgoing {outgoing.shape[1]}.")
    check_merging(beta, max_ratio)
    groups = _merged([incoming.flatten(1), outgoing.transpose(0, 1).flatten(1)], beta, max_ratio)
    rows = torch.stack([incoming[group].mean(0) for group in groups])
    columns = torch.stack([outgoing[:, group].sum(1) for group in groups], 1)
    return rows, columns, groups


def feature_complexity(network: nn.Module, beta: float = 0.1) -> dict[str, int]:
    """The number of features that are left when the filters of each convolution are merged, by the layer's name.

    The filters are those that the layer uses, standardised, binary and with their gain. A permutation of the channels
    changes nothing.

    Args:
        network: any; convolutions are looked at.
        beta: see `merge_channels`.

    Raises:
        InputError: a value out of range.
    """
    check_merging(beta, 1.0)
    found = {}
    for name, module in network.named_modules():
        if isinstance(module, BinaryConv2d | nn.Conv2d):
            with torch.no_grad():
                weight = module.effective_weight() if isinstance(module, BinaryConv2d) else module.weight
            found[name] = len(_merged([weight.detach().flatten(1)], beta, 1.0))
    return found


def _merged(features: list[Tensor], beta: float, max_ratio: float) -> list[list[int]]:
    """Groups of channels (C, n) that are merged; means take the place of their members."""
    rows = torch.cat([f.double().cpu() for f in features], 1)
    groups = [[channel] for channel in range(len(rows))]
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square()
    # What is equal differs by rounding, and nothing more may pass for it where beta is 0.
    bound = beta * float(distances.max()) + 1e-12 * float(rows.square().sum(1).max())
    fewest = max(1, len(groups) - int(max_ratio * len(groups)))
    distances.fill_diagonal_(torch.inf)
    while len(groups) > fewest:
        closest = int(distances.argmin())
        i, j = sorted(divmod(closest, len(groups)))
        if distances[i, j] > bound:
            break
        sizes = len(groups[i]), len(groups[j])
        rows[i] = (sizes[0] * rows[i] + sizes[1] * rows[j]) / sum(sizes)
        groups[i] = groups[i] + groups.pop(j)
        left = torch.arange(len(rows)) != j
        rows, distances = rows[left], distances[left][:, left]
        distances[i] = distances[:, i] = (rows - rows[i]).square().sum(1)
        distances[i, i] = torch.inf
    return groups


def check_merging(beta: float, max_ratio: float) -> None:
    """Refuses arguments of `merge_channels` that are out of range.

    Raises:
        InputError: it names the first of them.
    """
    if not 0 <= beta < 1:
        raise InputError(f"beta={beta} must be at least 0 and less than 1.")
    if not 0 <= max_ratio <= 1:
        raise InputError(f"max_ratio={max_ratio} must be at least 0 and at most 1.")
