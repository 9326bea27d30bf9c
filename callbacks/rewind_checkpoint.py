"""The rewind point as a file: the state of a training before one optimizer step, from which others start."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from bnfree import checksums
from bnfree.files import whole_file
from bnfree.tickets import take_snapshot

FORMAT, VERSION = "bnfree rewind point", 1


def write_rewind_point(trainer: Trainer, pl_module: LightningModule, network: nn.Module, path: Path) -> None:
    """Writes the state before the step whose batch has just been handed out; to be called in all processes.

    The file holds nothing but tensors and plain values:

        format, version    what it is
        step               how many optimizer steps have been taken
        state_dict         weights of the network without masks, see `bnfree.tickets.take_snapshot`
        checkpoint         a Trainer's checkpoint of this moment, without the state of callbacks; None before step 0,
                           where a fresh training starts from the weights alone

    Args:
        trainer: in its hook `on_train_batch_start`.
        pl_module: its module.
        network: what is pruned.
        path: the file; one that is there is replaced in one step.
    """
    content: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "step": trainer.global_step,
        "state_dict": take_snapshot(network),
        "checkpoint": None,
    }
    if trainer.global_step:
        whole = path.with_name(f".{path.name}.ckpt")
        trainer.save_checkpoint(whole)
        if trainer.is_global_zero:
            # Written a moment ago by this process.
            content["checkpoint"] = torch.load(whole, map_location="cpu", weights_only=False)
            whole.unlink()
            _before_the_batch(content["checkpoint"], trainer)
    if trainer.is_global_zero:
        with whole_file(path) as unfinished:
            checksums.save(content, unfinished)


def _before_the_batch(checkpoint: dict[str, Any], trainer: Trainer) -> None:
    """Makes a checkpoint, written after a batch was handed out and before it was used, one of the moment before."""
    # What callbacks remember, such as the best checkpoint, is about the run that goes on and not about its successors.
    checkpoint["callbacks"] = {}
    loops = checkpoint["loops"]["fit_loop"]
    progress = loops["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        counts.update(dict.fromkeys(("ready", "started", "processed"), counts["completed"]))
    progress["is_last_batch"] = False
    # What the epoch has logged before is about the run that goes on, too.
    for name in ("metrics", "random", "rows"):
        loops["epoch_loop.state_dict"].pop(name, None)
    # Restored by the data module, which knows that a batch that was handed out has not been used.
    loops["state_dict"].pop("combined_loader", None)
    done = progress["total" if trainer.check_val_every_n_epoch is None else "current"]["completed"]
    loop: Any = cast(Any, trainer).fit_loop.epoch_loop
    every = trainer.val_check_batch
    if loop._should_check_val_epoch() and every not in (None, float("inf")) and done % int(cast(float, every)) == 0:
        # Lightning, which cannot tell that validation is not due here, counts a step in passing it over.
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
