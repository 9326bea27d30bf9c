"""Where a ticket comes from, as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bnfree.lightning_modules.experiments.tickets.pruned_network import PrunedNetwork
from bnfree.tickets import Ticket, checksum, mask_statistics

# What `details` holds that is shown in words of its own.
TOLD = ("elastic", "transfer", "ownership", "earlier_ownership", "unscaled_shifts", "carried", "locked")


def origin_fields(pruned: PrunedNetwork) -> list[tuple[str, str]]:
    """Names and texts of what is known about a ticket or a checkpoint."""
    density = mask_statistics(pruned.masks).total.density
    found = [("file", pruned.path), ("network", network_text(pruned.sections))]
    if "data" in pruned.sections:
        found.append(("data", pruned.sections["data"]["class_path"].rpartition(".")[2]))
    if pruned.ticket is None:
        return [*found, ("kind", f"checkpoint of a pruned network, density {density:.5g}"),
                ("masks", f"sha256 {checksum(pruned.masks)}")]  # fmt: skip
    ticket = pruned.ticket
    found += [
        ("found by", f"score {ticket.score}, scope {ticket.scope}, level {ticket.level}"),
        ("density", f"{density:.5g} (asked for: {ticket.density:.5g})"),
        ("source", ticket.source or "not noted"),
        ("starts from", start_text(ticket)),
    ]
    found += history(ticket.details)
    found += [(name, str(value)) for name, value in ticket.details.items() if name not in TOLD]
    return [*found, ("masks", f"sha256 {ticket.checksum}")]


def network_text(sections: Mapping[str, Any]) -> str:
    """Class and arguments of the backbone; those that are null or at their usual setting `False` are left out."""
    model = sections.get("model", {})
    backbone = model.get("init_args", {}).get("backbone")
    if not isinstance(backbone, Mapping) or "class_path" not in backbone:
        return str(model.get("class_path", "not noted; give a config wherever one is needed"))
    shown = {k: v for k, v in backbone.get("init_args", {}).items() if v is not None and v is not False}
    arguments = ", ".join(f"{name}={value}".replace(", ", ",") for name, value in shown.items())
    return f"{backbone['class_path'].rpartition('.')[2]}({arguments})"


def start_text(ticket: Ticket) -> str:
    """What the training of a ticket starts from."""
    if ticket.rewind is None:
        return "none: training goes on from the weights that the masks were found with"
    if is_untrained(ticket):
        return "the weights of the ticket themselves: none have been trained under these masks"
    changed = sum(not torch.equal(tensor, ticket.state_dict[name]) for name, tensor in unmasked(ticket).items())
    return (
        f"weights of an earlier moment; {changed} of {len(ticket.rewind)} tensors differ from those it was found with"
    )


def is_untrained(ticket: Ticket) -> bool:
    """Whether the ticket's weights are those that its training starts from again."""
    start = ticket.start()
    return ticket.rewind is not None and all(torch.equal(start[n], value) for n, value in ticket.state_dict.items())


def unmasked(ticket: Ticket) -> dict[str, Tensor]:
    """The weights that training starts from, pruned ones 0, masks left out."""
    return {name: tensor for name, tensor in ticket.start().items() if not name.endswith(".mask")}


def history(details: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How a ticket was made of others, and who has signed it."""
    found = []
    for step in details.get("elastic", []):
        before, after = (",".join(map(str, step[which])) for which in ("from", "to"))
        depths = f"blocks {before} -> {after}, mapping {step['mapping']}"
        found.append(("elastic", f"{depths}, from masks {step['source_checksum'][:12]}"))
    for step in details.get("transfer", []):
        found.append(
            ("transfer", f"drawn fresh: {', '.join(step['fresh'])}; from masks {step['source_checksum'][:12]}")
        )
    if "carried" in details:
        found.append(("carried", str(details["carried"])))
    marks = [*details.get("earlier_ownership", []), *([details["ownership"]] if "ownership" in details else [])]
    for mark in marks:
        bits = sum(count for *_, count in mark["layers"].values())
        found += [
            ("signed", f"{bits} bits in {len(mark['layers'])} layers, key id {mark['key_id']}, on "
                       f"{mark['created'] or 'an unknown day'}, message {mark['message']!r}"),
            ("commitment", mark["commitment"]),
        ]  # fmt: skip
    if "locked" in details:
        locked = details["locked"]
        found.append(("locked", f"{locked['weights']} survivors are in the key {locked['id']}: bnfree ticket key join"))
    return found
