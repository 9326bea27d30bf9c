"""Ticket files: looked at, compared, stretched, squeezed, transferred, signed, verified, split and joined.

Every action of `bnfree ticket` is a function here, with typed settings and results:

    ticket_info, ticket_diff                                              what a ticket is, and what two have in common
    stretch_ticket_file, squeeze_ticket_file, transfer_ticket_file        tickets for other networks
    new_owner_key, sign_ticket_file, verify_ticket_file                   an owner's mark
    split_ticket_file, join_ticket_file                                   a ticket in two parts
"""

from bnfree.lightning_modules.experiments.tickets.changing import (
    ElasticResult,
    ElasticSettings,
    TransferResult,
    TransferSettings,
    squeeze_ticket_file,
    stretch_ticket_file,
    transfer_ticket_file,
)
from bnfree.lightning_modules.experiments.tickets.looking import TicketDiff, TicketInfo, ticket_diff, ticket_info
from bnfree.lightning_modules.experiments.tickets.owning import (
    JoinedTicket,
    OwnerKey,
    SignedTicket,
    SignSettings,
    SplitTicket,
    VerifiedTicket,
    join_ticket_file,
    new_owner_key,
    sign_ticket_file,
    split_ticket_file,
    verify_ticket_file,
)
from bnfree.lightning_modules.experiments.tickets.pruned_network import PrunedNetwork, TicketFile

__all__ = [
    "ElasticResult",
    "ElasticSettings",
    "JoinedTicket",
    "OwnerKey",
    "PrunedNetwork",
    "SignSettings",
    "SignedTicket",
    "SplitTicket",
    "TicketDiff",
    "TicketFile",
    "TicketInfo",
    "TransferResult",
    "TransferSettings",
    "VerifiedTicket",
    "join_ticket_file",
    "new_owner_key",
    "sign_ticket_file",
    "split_ticket_file",
    "squeeze_ticket_file",
    "stretch_ticket_file",
    "ticket_diff",
    "ticket_info",
    "transfer_ticket_file",
    "verify_ticket_file",
]
