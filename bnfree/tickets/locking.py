"""A ticket file in two parts: a locked ticket to give away, and the key without which it trains to less.

`split_key` says which survivors the key takes. Here the tensors are taken apart with the masks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bnfree.convolution import standardize_weight
from bnfree.errors import InputError
from bnfree.tickets.generators import layer_generator
from bnfree.tickets.masks import Masks, checksum
from bnfree.tickets.splitting import join_key, split_key
from bnfree.tickets.ticket_file import Ticket


@dataclass(frozen=True)
class TicketKey:
    """The part of a ticket that a locked ticket lacks."""

    masks: Masks
    """The survivors that the key holds, by name of the layer."""
    found: dict[str, Tensor]
    """Their values among the weights that the ticket was found with, 1-D, by name of the layer."""
    rewind: dict[str, Tensor] | None
    """Their values among the weights that training starts from; None: the ticket has no others."""
    whole: str
    """Checksum of the masks of the whole ticket."""

    @property
    def id(self) -> str:
        """Says which key belongs to which locked ticket: the beginning of the checksum of the key's masks."""
        return checksum(self.masks)[:16]


def lock(ticket: Ticket, share: float = 0.05, seed: int = 0) -> tuple[Ticket, TicketKey]:
    """Takes the best survivors out of a ticket, masks and values.

    The best are those of largest magnitude after standardisation, in the weights that the ticket was found with. What
    stands in their place is drawn like the pruned weights of the layer, or is 0 where these are 0.

    Args:
        ticket: the ticket.
        share: share of the survivors that goes into the key, between 0 and 1.
        seed: of what is drawn.

    Returns:
        The locked ticket, with the key's `id` and size in `details["locked"]`, and the key.

    Raises:
        InputError: a locked ticket, a share out of range or of no weight, or weights that are not finite.
    """
    if "locked" in ticket.details:
        raise InputError(f"the ticket is locked with the key {ticket.details['locked']['id']}; join them first.")
    masks = ticket.masks
    scores = {n: standardize_weight(ticket.state_dict[f"{n}.weight"].float(), m).abs() for n, m in masks.items()}
    size = {n: score * m.flatten(1).sum(1).clamp(min=1).sqrt().view(-1, 1, 1, 1)
            for (n, m), score in zip(masks.items(), scores.values(), strict=True)}  # fmt: skip
    locked, taken = split_key(masks, size, share)
    states: list[dict[str, Tensor] | None] = []
    values: list[dict[str, Tensor] | None] = []
    for part, state in (("found", ticket.state_dict), ("rewind", ticket.rewind)):
        values.append(None if state is None else {n: state[f"{n}.weight"][mask].clone() for n, mask in taken.items()})
        states.append(None if state is None else _without(state, masks, taken, f"{seed}:{part}"))
    found, rewind = values
    key = TicketKey(taken, found or {}, rewind, ticket.checksum)
    state_dict = {**(states[0] or {}), **{f"{name}.mask": mask for name, mask in locked.items()}}
    count = sum(int(mask.sum()) for mask in taken.values())
    details = {**ticket.details, "locked": {"id": key.id, "weights": count}}
    return dataclasses.replace(ticket, state_dict=state_dict, rewind=states[1], details=details), key


def unlock(locked: Ticket, key: TicketKey) -> Ticket:
    """The ticket that `lock` has taken apart, bit for bit.

    Raises:
        InputError: the key of another ticket.
    """
    known = locked.details.get("locked")
    if known is None:
        raise InputError("the ticket is not locked; there is nothing to join.")
    if known["id"] != key.id:
        raise InputError(f"the key is {key.id}, but the ticket is locked with {known['id']}; give the key of this one.")
    masks = join_key(locked.masks, key.masks)
    if checksum(masks) != key.whole:
        raise InputError(
            "the masks of the locked ticket and of the key do not give those that were split; give both of one."
        )
    details: dict[str, Any] = {name: value for name, value in locked.details.items() if name != "locked"}
    state_dict = _with(locked.state_dict, key.masks, key.found)
    state_dict |= {f"{name}.mask": mask for name, mask in masks.items()}
    rewind = locked.rewind
    if rewind is not None and key.rewind is not None:
        rewind = _with(rewind, key.masks, key.rewind)
    return dataclasses.replace(locked, state_dict=state_dict, rewind=rewind, details=details)


def _without(
    state: Mapping[str, Tensor], masks: Mapping[str, Tensor], taken: Mapping[str, Tensor], seed: str
) -> dict[str, Tensor]:
    """A state in which the weights of a key look like pruned ones."""
    result = dict(state)
    for name, mask in taken.items():
        weight = state[f"{name}.weight"].clone()
        pruned = weight[~masks[name]].double()
        noise = torch.randn(int(mask.sum()), generator=layer_generator(0, f"{seed}:{name}"), dtype=torch.float64)
        spread, mean = (pruned.std(correction=0), pruned.mean()) if len(pruned) else (weight.double().std(), 0.0)
        weight[mask] = (mean + spread * noise).to(weight.dtype)
        result[f"{name}.weight"] = weight
    return result


def _with(state: Mapping[str, Tensor], masks: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    result = dict(state)
    for name, mask in masks.items():
        weight = state[f"{name}.weight"].clone()
        weight[mask] = values[name]
        result[f"{name}.weight"] = weight
    return result
