"""An owner's mark in a ticket file: masks, weights and the signature together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bnfree.convolution import standardize_weight
from bnfree.tickets.generators import layer_generator
from bnfree.tickets.keyed import check_key, key_digest
from bnfree.tickets.ownership import Signature, sign
from bnfree.tickets.ticket_file import Ticket


def sign_ticket(
    ticket: Ticket,
    key: str,
    message: str = "",
    *,
    bits: int = 256,
    layers: Sequence[str] | None = None,
    created: str = "",
) -> Ticket:
    """The ticket with an owner's mark, see `sign`.

    Pruned weights that the mark needs come alive in the order of their size in `rewind`, and with the value that they
    have there, in both sets of weights; without `rewind` they are drawn. Survivors go in the order of their size among
    the weights that the ticket was found with.

    Args:
        ticket: the ticket.
        key: the owner's secret.
        message: what is signed.
        bits: number of kernels to mark.
        layers: names of the layers to mark; None: all.
        created: when.

    Returns:
        A new ticket of the same density in every layer. The signature is its `details["ownership"]`; that of an earlier
        mark, which the new one may damage, goes to the end of the list `details["earlier_ownership"]`.

    Raises:
        InputError: as `sign`.
    """
    check_key(key)
    masks = ticket.masks
    weights = _candidates(ticket, key)
    signed, signature = sign(
        masks, key, message, bits=bits, magnitudes=_sizes(ticket, weights, key), layers=layers, created=created
    )
    state_dict, rewind = dict(ticket.state_dict), None if ticket.rewind is None else dict(ticket.rewind)
    for name, mask in signed.items():
        weight, new = state_dict[f"{name}.weight"], mask & ~masks[name]
        state_dict[f"{name}.weight"] = torch.where(new, weights[name].to(weight.dtype), weight).masked_fill(~mask, 0)
        state_dict[f"{name}.mask"] = mask
    details = dict(ticket.details)
    if "ownership" in details:
        details["earlier_ownership"] = [*details.get("earlier_ownership", []), details["ownership"]]
    details["ownership"] = signature.plain()
    return dataclasses.replace(ticket, state_dict=state_dict, rewind=rewind, details=details)


def signature_of(ticket: Ticket) -> Signature | None:
    """The signature in a ticket; None: nobody has signed it."""
    plain = ticket.details.get("ownership")
    return None if plain is None else Signature(**plain)


def _candidates(ticket: Ticket, key: str) -> dict[str, Tensor]:
    """For each layer the values with which pruned weights come alive."""
    if ticket.rewind is not None:
        return {name: ticket.rewind[f"{name}.weight"] for name in ticket.masks}
    drawn = {}
    for name, mask in ticket.masks.items():
        survivors = ticket.state_dict[f"{name}.weight"][mask].double()
        size = survivors.square().mean().sqrt() if len(survivors) else torch.ones((), dtype=torch.float64)
        drawn[name] = size * torch.randn(mask.shape, generator=_generator(key, name), dtype=torch.float64)
    return drawn


def _sizes(ticket: Ticket, weights: Mapping[str, Tensor], key: str) -> dict[str, Tensor]:
    """How good weights are: standardised magnitudes, of survivors as found, of the others as they would come alive."""
    sizes = {}
    for name, mask in ticket.masks.items():
        found = _standardized(ticket.state_dict[f"{name}.weight"], mask)
        pruned = _standardized(weights[name], None)
        # Among equal ones, such as zeros, the choice must not show where a kernel begins.
        tie = 1e-6 * torch.rand(mask.shape, generator=_generator(key, f"{name}:ties"), dtype=torch.float64)
        sizes[name] = torch.where(mask, found, pruned) + tie
    return sizes


def _standardized(weight: Tensor, mask: Tensor | None) -> Tensor:
    count = torch.tensor(weight.shape[1:].numel()) if mask is None else mask.sum((1, 2, 3), keepdim=True).clamp(min=1)
    return standardize_weight(weight.double(), mask).abs() * count.sqrt()


def _generator(key: str, name: str) -> torch.Generator:
    return layer_generator(0, key_digest(key, f"bnfree signed weights:{name}"))
