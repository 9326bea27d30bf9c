"""What a ticket takes along to another network: its masks and weights, its masks and signs, or its masks alone."""

from __future__ import annotations

import dataclasses
from typing import Literal

from torch import nn

from bnfree.errors import InputError
from bnfree.tickets.rewinding import signs_of, take_snapshot
from bnfree.tickets.ticket_file import Ticket

Carried = Literal["both", "signs", "mask"]


def carry(ticket: Ticket, network: nn.Module, what: Carried = "both") -> Ticket:
    """A ticket that starts from part of what it holds.

    Args:
        ticket: the ticket, whose tensors fit the network already.
        network: a fresh network of the ticket's kind; its weights are what `mask` starts from.
        what: `both`: the masks and the weights that training starts from, so the ticket as it is; `signs`: of the
            weights that survive nothing but the signs, see `signs_of`; `mask`: the masks, and the network's weights.

    Returns:
        A new ticket, with another `rewind`, and the choice in its `details["carried"]`.

    Raises:
        InputError: an unknown choice, or a ticket of another network.
    """
    if what not in ("both", "signs", "mask"):
        raise InputError(f"copy={what!r} is not known; choose 'both', 'signs' or 'mask'.")
    if what == "both":
        return ticket
    if what == "signs":
        rewind = signs_of(network, ticket.state_dict if ticket.rewind is None else ticket.rewind, ticket.masks)
        rewind = {name: tensor for name, tensor in rewind.items() if not name.endswith(".mask")}
    else:
        rewind = take_snapshot(network)
    return dataclasses.replace(ticket, rewind=rewind, details={**ticket.details, "carried": what})
