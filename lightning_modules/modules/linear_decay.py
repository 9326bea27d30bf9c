"""Linear decay of the learning rate to zero, the schedule of the ReActNet and BN-free recipes."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from bnfree.errors import InputError


class LinearDecay(LambdaLR):
    """Learning rate times 1 - k / total in step k = 0, 1, ..., total - 1, after an optional linear warm-up.

    The last step still moves, with factor 1 / total. (The public BNN_NoBN code steps its schedule at the start of an
    epoch, so its last epoch has learning rate 0, and a resumed run goes below zero.)

    Args:
        optimizer: the optimizer.
        total: number of steps (or epochs, by `interval`) of the whole run.
        warmup: steps (or epochs) in which the factor also rises linearly to 1.

    Raises:
        InputError: `warmup` not within 0 and `total`.
    """

    def __init__(self, optimizer: Optimizer, total: int, warmup: int = 0) -> None:
        if not 0 <= warmup < total:
            raise InputError(f"warmup={warmup} must be at least 0 and less than the {total} steps of the run.")

        def factor(step: int) -> float:
            decay = max(1 - step / total, 1 / total)
            return decay * min(1.0, (step + 1) / (warmup + 1))

        super().__init__(optimizer, factor)
