"""Messages of libraries that say nothing to the user of `bnfree`."""

from __future__ import annotations

import logging
import os
import warnings


def quieten(subcommand: str) -> None:
    """Leaves out Lightning's advertisements and jsonargparse's warnings about the calls that Lightning makes.

    Args:
        subcommand: what is going to run.
    """
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_worth_reading)
    # The run directory is the command's own, and resuming into it is what the user has asked for.
    if subcommand != "fit":
        # It names the checkpoint callbacks, which have nothing to do in an evaluation.
        warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks")
        # Predictions carry the index of their image themselves.
        warnings.filterwarnings("ignore", message="Couldn't infer the batch indices")
    warnings.filterwarnings("ignore", message="The dirpath has changed from")
    # Its size in MB is counted as if in 32 bits, which the weights are in mixed precision.
    warnings.filterwarnings("ignore", message="Precision .*-mixed is not supported by the model summary")
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")


def _is_worth_reading(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return "Tip:" not in message and not message.startswith("Trainer already configured with model summary")
