"""The ticket file: a pruned network, the weights it starts from again, and how it was found, in one file.

A plain dict that torch.load opens with `weights_only=True`:

    format, version    what it is
    state_dict         the network's weights when the ticket was found, masks included (`<layer>.mask`), as any code
                       that reads a state dict expects
    rewind             the weights that training starts from again, without masks and with the pruned weights as they
                       were, so that controls and other masks can use them; None: from where it was found
    found              how it was found: score, scope, density, level, source and whatever else was noted
    hyper_parameters   of the model and the data, where a checkpoint had them: what is needed to build the network
    class_names        of the data that it was found on, where they are known
    class_signatures   see `bnfree.trust`, where the config names classes of the user's own
    checksums          SHA-256 of the masks, and of everything

`model.init_from` accepts it and starts from `rewind` under the masks.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bnfree import checksums, trust
from bnfree.checksums import value_bytes
from bnfree.errors import InputError
from bnfree.files import whole_file
from bnfree.state_dicts import plain_name, read_checkpoint_file
from bnfree.tickets.masks import Masks, checksum
from bnfree.tickets.rewinding import Snapshot, take_snapshot

FORMAT, VERSION = "bnfree ticket", 1
CONFIG_KEYS = ("hyper_parameters", "datamodule_hyper_parameters")
NAMES_KEY = "class_names"


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """A ticket in memory; tensors on the CPU, names without those that torch.compile and a LightningModule add."""

    state_dict: dict[str, Tensor]
    """The network's state dict when the ticket was found, masks included."""
    rewind: Snapshot | None = None
    """The weights that training starts from again, see `take_snapshot`; None: those of `state_dict`."""
    score: str
    """The score that its masks were found with; for a mask of other origin what that was, such as `random`."""
    scope: str
    """The scope of the ranking, likewise."""
    density: float
    """The density that was asked for; what it is: `mask_statistics(ticket.masks)`."""
    level: int = 0
    """How many times the network had been pruned, this time included."""
    source: str = ""
    """The run or file that it comes from."""
    details: dict[str, Any] = field(default_factory=dict)
    """Whatever else is to be remembered: plain values, lists and dicts of them."""
    config: dict[str, Any] = field(default_factory=dict)
    """`hyper_parameters` and `datamodule_hyper_parameters` of a checkpoint, with which `bnfree summary` builds the
    network, and `class_names` of its data; empty: the user has to give a config."""

    @classmethod
    def of(cls, network: nn.Module, **found: Any) -> Ticket:
        """A ticket of a pruned network; `found` are the fields other than `state_dict`."""
        state = take_snapshot(network)
        masks = {
            plain_name(name): value.detach().to("cpu", copy=True)
            for name, value in network.state_dict().items()
            if name.endswith(".mask")
        }
        return cls(state_dict={**state, **masks}, **found)

    @property
    def masks(self) -> Masks:
        """The masks by name of the layer."""
        return {n.removesuffix(".mask"): mask for n, mask in self.state_dict.items() if n.endswith(".mask")}

    @property
    def checksum(self) -> str:
        """SHA-256 of the masks, see `checksum`."""
        return checksum(self.masks)

    def start(self) -> dict[str, Tensor]:
        """The state dict that training starts from: the rewound weights, masks included, pruned latent weights 0."""
        state = dict(self.state_dict if self.rewind is None else self.rewind)
        for name, mask in self.masks.items():
            state[f"{name}.weight"] = state[f"{name}.weight"].masked_fill(~mask, 0)
            state[f"{name}.mask"] = mask
        return state


def save_ticket(ticket: Ticket, path: str | os.PathLike[str]) -> None:
    """Writes a ticket file; a file of that name is replaced in one step, so that a crash leaves the old or the new one.

    Raises:
        InputError: the ticket has no mask.
    """
    if not ticket.masks:
        raise InputError("the ticket has no mask; prune its network before saving it.")
    content = {
        "format": FORMAT,
        "version": VERSION,
        "state_dict": ticket.state_dict,
        "rewind": ticket.rewind,
        "found": {name: getattr(ticket, name) for name in ("score", "scope", "density", "level", "source", "details")},
        "checksums": {"masks": ticket.checksum, "content": _content_checksum(ticket)},
        **{key: ticket.config[key] for key in (*CONFIG_KEYS, NAMES_KEY) if key in ticket.config},
    }
    signed = trust.signatures([ticket.config.get(key) for key in CONFIG_KEYS])
    if signed:
        content[trust.KEY] = signed
    with whole_file(path) as unfinished:
        checksums.save(content, unfinished)


def load_ticket(path: str | os.PathLike[str]) -> Ticket:
    """Reads a ticket file and checks it.

    Raises:
        InputError: no such file, no ticket, of a later version, or damaged.
    """
    given = f"ticket={str(path)!r}"
    return read_ticket(read_checkpoint_file(path, given), given)


def is_ticket(content: object) -> bool:
    """Whether what was read from a file is a ticket."""
    return isinstance(content, Mapping) and _is(content.get("format"), FORMAT)


def _is(found: object, value: str | int) -> bool:
    """Whether they are equal; comparing a tensor, which a file may have anywhere, would give no answer."""
    return isinstance(found, type(value)) and found == value


def read_ticket(content: object, given: str) -> Ticket:
    """The ticket in what was read from a file.

    Args:
        content: what `torch.load` gave.
        given: how the user gave the file, e.g. "init_from='ticket.pt'": the subject of the messages.

    Raises:
        InputError: no ticket, one of a later version, or one whose content does not give its checksums.
    """
    if not isinstance(content, Mapping) or not is_ticket(content):
        raise InputError(f"{given} is no ticket; give a file that save_ticket wrote.")
    version = content.get("version")
    if not _is(version, VERSION):
        found = version if isinstance(version, int | None) else type(version).__name__
        raise InputError(
            f"{given} is a ticket of version {found!r}, which this bnfree cannot read; it reads version {VERSION}."
        )
    try:
        ticket = Ticket(
            state_dict=content["state_dict"],
            rewind=content["rewind"],
            config={key: content[key] for key in (*CONFIG_KEYS, NAMES_KEY) if key in content},
            **content["found"],
        )
        problem = _problem(ticket)
        if problem is not None:
            raise InputError(f"{given} is no sound ticket: {problem}; give an undamaged copy.")
        sums = {"masks": ticket.checksum, "content": _content_checksum(ticket)}
        damaged = [what for what, value in sums.items() if content["checksums"][what] != value]
    except (KeyError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
        raise InputError(
            f"{given} is an incomplete ticket ({type(error).__name__}); give an undamaged copy."
        ) from error
    for key in CONFIG_KEYS:
        trust.approve_signed(content.get(key), content.get(trust.KEY))
    if damaged:
        what = "masks do" if "masks" in damaged else "weights or notes do"
        raise InputError(
            f"{given} is damaged or was edited: its {what} not give the checksum that is written in it; give an "
            "undamaged copy."
        )
    return ticket


def _problem(ticket: Ticket) -> str | None:
    """What is wrong with a ticket whose checksums may be right; None: nothing."""
    kinds = {"score": str, "scope": str, "density": int | float, "level": int, "source": str, "details": dict}
    for name, kind in kinds.items():
        if not isinstance(getattr(ticket, name), kind):
            return f"its {name} is of the type {type(getattr(ticket, name)).__name__}"
    states = [ticket.state_dict, *([] if ticket.rewind is None else [ticket.rewind])]
    for state in states:
        for name, tensor in state.items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor):
                return f"{name!r} is no tensor"
    if not ticket.masks:
        return "it has no mask"
    for name, mask in ticket.masks.items():
        if mask.dtype != torch.bool or mask.dim() < 2 or mask.numel() == 0:
            return f"the mask of {name} is {mask.dtype} of shape {tuple(mask.shape)}"
        if any(getattr(state.get(f"{name}.weight"), "shape", None) != mask.shape for state in states):
            return f"the mask of {name} has another shape than its weight"
    return None


def _content_checksum(ticket: Ticket) -> str:
    """SHA-256 over tensors and notes; the config, which decides nothing about the ticket, is left out."""
    digest = hashlib.sha256()
    for part in (ticket.state_dict, ticket.rewind or {}):
        digest.update(f"{len(part)};".encode())
        for name, tensor in sorted(part.items()):
            digest.update(f"{len(name)}:{name}{tensor.dtype}{list(tensor.shape)}".encode())
            digest.update(value_bytes(tensor))
    notes = [ticket.score, ticket.scope, ticket.density, ticket.level, ticket.source, ticket.details]
    digest.update(json.dumps(notes, sort_keys=True).encode())
    return digest.hexdigest()
