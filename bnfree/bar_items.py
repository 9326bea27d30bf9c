"""What a progress bar shows of a step."""

from __future__ import annotations

from typing import Any


def is_read_in_every_step(trainer: Any) -> bool:
    """Whether a Lightning Trainer's bar shows only what is logged with `prog_bar=True`, which is read in every step.

    `bnfree.callbacks.TrainingBar` takes what it shows from `bar_items`, and so does not.

    Args:
        trainer: None where there is none, or no bar: False.
    """
    bar = getattr(trainer, "progress_bar_callback", None)
    return bar is not None and not getattr(bar, "takes_bar_items", False)
