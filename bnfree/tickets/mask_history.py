"""When a mask has settled: the masks of the last epochs, and how far the newest is from the others.

Source: You et al., "Drawing early-bird tickets" (ICLR 2020, arXiv 1909.11957), which keeps the masks of the last five
epochs and draws the ticket once all are within 0.1 of the newest one in Hamming distance, as a share of the mask.

A share of the mask says less the lower the density d is: two unrelated masks differ in 2d(1 - d) of the weights, which
is 0.5 at d = 0.5, 0.32 at 0.2 and below 0.1 at 0.05, where every mask would seem settled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bnfree.errors import InputError
from bnfree.tickets.masks import Masks, pack_masks, unpack_masks
from bnfree.tickets.statistics import hamming_distance


class MaskHistory:
    """The masks of the last epochs.

    Args:
        window: how many masks are compared, the newest included.
        tolerance: the mask has settled once all their distances to the newest are below this share of the weights.

    Raises:
        InputError: a value out of range.
    """

    def __init__(self, window: int = 5, tolerance: float = 0.1) -> None:
        if window < 2:
            raise InputError(f"window={window} must be at least 2: the newest mask and one to compare it with.")
        if not 0 < tolerance <= 1:
            raise InputError(f"tolerance={tolerance} must be above 0 and at most 1: a share of the weights.")
        self.window, self.tolerance = window, tolerance
        self._masks: dict[int, Masks] = {}

    def observe(self, epoch: int, masks: Mapping[str, Tensor]) -> None:
        """Takes the masks of an epoch in; what it had of this epoch and later ones is replaced.

        Raises:
            InputError: masks of other layers or shapes than before.
        """
        earlier = {e: kept for e, kept in self._masks.items() if e < epoch}
        for kept in earlier.values():
            hamming_distance(kept, masks)
        self._masks = {**earlier, epoch: dict(masks)}
        for stale in sorted(self._masks)[: -self.window]:
            del self._masks[stale]

    @property
    def last_epoch(self) -> int:
        """The epoch of the newest masks; -1 before the first."""
        return max(self._masks, default=-1)

    @property
    def newest(self) -> Masks:
        """The newest masks; empty before the first."""
        return self._masks.get(self.last_epoch, {})

    @property
    def distances(self) -> list[float]:
        """Shares of the weights (0 to 1) in which the earlier masks differ from the newest one, oldest first."""
        return [hamming_distance(self._masks[epoch], self.newest) for epoch in sorted(self._masks)[:-1]]

    @property
    def settled(self) -> bool:
        """Whether there are `window` masks, all closer to the newest than the tolerance."""
        distances = self.distances
        return len(distances) == self.window - 1 and max(distances) < self.tolerance

    def state_dict(self) -> dict[str, Any]:
        """The masks at one bit a weight, by epoch: tensors and plain values, for a checkpoint."""
        return {"masks": {epoch: pack_masks(masks) for epoch, masks in self._masks.items()}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on from a `state_dict`."""
        self._masks = {int(epoch): unpack_masks(packed) for epoch, packed in state_dict["masks"].items()}


def check_tolerance(tolerance: float, density: float) -> None:
    """Refuses a tolerance that unrelated masks of a density would meet.

    Raises:
        InputError: not below 2d(1 - d).
    """
    chance = 2 * density * (1 - density)
    if tolerance >= chance:
        raise InputError(
            f"tolerance={tolerance} says nothing at density={density}: two unrelated masks differ in {chance:.2g} of "
            f"the weights only; give much less, such as {chance / 5:.1g}."
        )
