"""Tickets for another data set: the same body under another stem and another classifier.

Source: the transfers of "The elastic lottery ticket hypothesis" (Chen et al., NeurIPS 2021, arXiv 2103.16547, appendix)
and open_lth, which draws the classifier anew where the number of classes differs. Here it is drawn anew always, unless
it is asked for: the same number of classes are not the same classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from bnfree.errors import InputError
from bnfree.tickets.rewinding import Snapshot, take_snapshot
from bnfree.tickets.ticket_file import NAMES_KEY, Ticket

CLASSIFIER = "classifier"


def transfer(
    ticket: Ticket, target: nn.Module, keep_classifier: bool = False, config: Mapping[str, Any] | None = None
) -> Ticket:
    """The ticket for a network that sees other images or knows other classes.

    Every part of the network (`stem`, `body`, `classifier`) is carried over whole or drawn anew whole. Carried over is
    what has the same names and shapes, with its masks, weights and betas; drawn anew is the classifier, and a part
    without masks whose shapes differ, such as a stem for other image channels.

    Args:
        ticket: the ticket.
        target: the network it is for; its weights are those that are drawn.
        keep_classifier: carry the classifier over too: the classes are the same.
        config: what the new ticket is to remember as its `config`.

    Returns:
        A new ticket; its `details["transfer"]` lists every transfer so far: the parts drawn anew, and the checksum of
        the masks it started from.

    Raises:
        InputError: a network that differs in more than its classes and images, or a classifier that cannot be kept.
    """
    expected = take_snapshot(target)
    name, own = type(target).__name__, {n: t for n, t in ticket.state_dict.items() if not n.endswith(".mask")}
    masked = {layer.partition(".")[0] for layer in ticket.masks}
    fresh = set() if keep_classifier else {CLASSIFIER} & {n.partition(".")[0] for n in expected}
    for tensor in sorted(own.keys() | expected.keys()):
        part = tensor.partition(".")[0]
        ours, theirs = (tuple(state[tensor].shape) if tensor in state else None for state in (own, expected))
        if ours == theirs or part in fresh:
            continue
        if part in masked or part == CLASSIFIER:
            raise InputError(_difference(tensor, part, ours, theirs, name))
        fresh.add(part)

    def moved(state: Mapping[str, Tensor]) -> Snapshot:
        taken = {n: (expected[n] if n.partition(".")[0] in fresh else state[n]).clone() for n in expected}
        return taken | {n: mask.clone() for n, mask in state.items() if n.endswith(".mask")}

    remembered = dict(ticket.config if config is None else config)
    if CLASSIFIER in fresh:
        # What its classes are called is for the data to say on which it is trained.
        remembered.pop(NAMES_KEY, None)
    step = {"source_checksum": ticket.checksum, "fresh": sorted(fresh)}
    details = {**ticket.details, "transfer": [*ticket.details.get("transfer", []), step]}
    return dataclasses.replace(
        ticket,
        state_dict=moved(ticket.state_dict),
        rewind=None if ticket.rewind is None else moved(ticket.rewind),
        details=details,
        config=remembered,
    )


def _difference(
    tensor: str, part: str, ours: tuple[int, ...] | None, theirs: tuple[int, ...] | None, network: str
) -> str:
    if part == CLASSIFIER:
        return f"keep_classifier: {tensor!r} has shape {ours} in the ticket and {theirs} in the target; leave it out."
    if ours is None or theirs is None:
        lacking = "the ticket has no" if ours is None else f"{network} has no"
        return (
            f"the ticket cannot be transferred to this {network}: {lacking} {tensor!r}; give a network of the same "
            "kind, depth and normalisation, and stretch or squeeze the ticket where the depth differs."
        )
    return (
        f"the ticket cannot be transferred to this {network}: {tensor!r} has shape {ours} in the ticket and {theirs} "
        "there, and pruned parts are not drawn anew; give a network of the same width."
    )
