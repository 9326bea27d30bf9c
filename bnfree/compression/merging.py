"""Iterative feature merging: channels that are alike become one, without data and without training.

Source: Chen et al., "Going beyond neural network feature similarity: the network feature complexity and its
interpretation using category theory" (ICLR 2024, arXiv 2310.06756); the measure alone, of every layer, is
`bnfree.feature_complexity`. Deviation: what enters a channel is averaged and what leaves it is summed, in place of the
reverse. After a ReLU, which is homogeneous, both are the same function where channels are equal.
"""

from __future__ import annotations

from dataclasses import dataclass

from bnfree.compression.inner_channels import InnerChannels
from bnfree.feature_complexity import check_merging, merge_channels


@dataclass(frozen=True)
class Merge:
    """Merges the closest two channels of a branch until they are farther apart than a share of the largest distance.

    The distance of two channels is summed over all that belongs to them: filter, shift, and what the next convolution
    makes of them.

    Raises:
        InputError: a value out of range.

    Example:
        >>> import torch
        >>> filters = torch.tensor([1.0, 1.0, 2.0]).view(3, 1, 1, 1)
        >>> channels = InnerChannels(filters, torch.zeros(3), torch.ones(1, 3, 1, 1))
        >>> Merge(beta=0.0)(channels).outgoing.flatten().tolist()
        [2.0, 1.0]
    """

    beta: float = 0.1
    """Share of the largest squared distance below which channels are merged; 0: only equal ones."""
    max_ratio: float = 1.0
    """Greatest share of a block's channels that may go."""

    def __post_init__(self) -> None:
        check_merging(self.beta, self.max_ratio)

    def __call__(self, channels: InnerChannels) -> InnerChannels:
        """The channels that are left."""
        rows, outgoing, _ = merge_channels(channels.rows, channels.outgoing, self.beta, self.max_ratio)
        return channels.with_rows(rows, outgoing)
