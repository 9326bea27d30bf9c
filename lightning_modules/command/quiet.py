"""Messages of libraries that say nothing to the user of `bnfree`."""

from __future__ import annotations

import logging
import os
import warnings


def quieten() -> None:
    """Leaves out Lightning's advertisements and jsonargparse's warnings about the calls that Lightning makes."""
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_tip)
    # The run directory is the command's own, and resuming into it is what the user has asked for.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")


def _is_no_tip(record: logging.LogRecord) -> bool:
    return "Tip:" not in record.getMessage()
