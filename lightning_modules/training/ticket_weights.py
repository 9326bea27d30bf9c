"""Ticket files where a checkpoint is expected: to evaluate them."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn

from bnfree.errors import InputError
from bnfree.lightning_modules.training.checkpoints import check_fits, check_weights
from bnfree.lightning_modules.training.messages import say
from bnfree.tickets import is_ticket, read_ticket


def checkpoint_to_load(
    model: LightningModule, data: LightningDataModule | None, content: dict[str, Any], path: str
) -> str | None:
    """Checks that a file fits a module, before the Trainer loads it.

    The backbone of the module is given the masks of a ticket, and the weights that it was found with, at once; a line
    says that nobody has trained them since.

    Args:
        model: the module.
        data: what it is to be evaluated on.
        content: what the file holds.
        path: the file.

    Returns:
        What the Trainer has to load: the path of a checkpoint, None after a ticket.

    Raises:
        InputError: a file of another network, a damaged ticket, or one without data to evaluate it on.
    """
    if not is_ticket(content):
        check_fits(model, content, path)
        return path
    ticket = read_ticket(content, f"ckpt_path={path!r}")
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise InputError(f"ckpt_path={path!r} is a ticket, and {type(model).__name__} has no backbone to put it into.")
    if data is None:
        raise InputError(f"ckpt_path={path!r} is a ticket that does not say on which data; add --data or a --config.")
    check_weights(backbone.state_dict(), ticket.state_dict, type(backbone).__name__, content, path)
    backbone.load_state_dict(ticket.state_dict)
    start = ticket.start()
    if ticket.rewind is not None and all(torch.equal(start[name], value) for name, value in ticket.state_dict.items()):
        weights = "its rewind weights, which have not been trained under its masks"
    else:
        weights = "the weights that its masks were found with, pruned and not trained since"
    say(f"{path} is a ticket: evaluated with {weights}.")
    return None
