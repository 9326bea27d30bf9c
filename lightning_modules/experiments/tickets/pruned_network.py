"""The files that actions read and write: a ticket, or a checkpoint of a pruned network."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bnfree.errors import InputError
from bnfree.lightning_modules.experiments.lottery.level_results import TICKET
from bnfree.lightning_modules.training.checkpoints import remembered_config
from bnfree.lightning_modules.training.config.found import read_found
from bnfree.lightning_modules.training.run_directory import CHECKPOINTS, latest_config, run_directory_of
from bnfree.state_dicts import plain_names, read_checkpoint_file, read_state_dict
from bnfree.tickets import Masks, Ticket, is_ticket, read_ticket


@dataclass(frozen=True)
class PrunedNetwork:
    """Weights and masks from a file, under the names that the network itself gives them."""

    path: str
    """As the user gave it."""
    state_dict: dict[str, Tensor]
    """Weights and masks; of a ticket those that it was found with."""
    ticket: Ticket | None
    """The ticket; None: a checkpoint."""
    sections: dict[str, Any]
    """The sections `model` and `data` of a config, as far as the file knows them."""

    @property
    def masks(self) -> Masks:
        """The masks by name of the layer."""
        return {n.removesuffix(".mask"): m.bool() for n, m in self.state_dict.items() if n.endswith(".mask")}

    @property
    def start(self) -> Mapping[str, Tensor]:
        """The weights that training starts from: of a ticket the rewound ones, of a checkpoint its own."""
        if self.ticket is None or self.ticket.rewind is None:
            return self.state_dict
        return self.ticket.rewind


@dataclass(frozen=True)
class TicketFile(PrunedNetwork):
    """The same from a file that is a ticket for sure."""

    ticket: Ticket


def read_pruned_network(path: str | Path, argument: str = "ticket") -> PrunedNetwork:
    """Reads a ticket file, or a checkpoint of a pruned network.

    Args:
        path: the file, or a directory that holds `ticket.pt` or, as a run directory, `checkpoints/last.ckpt`.
        argument: what the messages call it.

    Raises:
        InputError: no such file, a damaged one, or a network without masks.
    """
    given, file = f"{argument}={str(path)!r}", Path(path).expanduser()
    if file.is_dir():
        found = [name for name in (file / TICKET, file / CHECKPOINTS / "last.ckpt") if name.is_file()]
        if not found:
            raise InputError(f"{given} is a directory without {TICKET}; give a ticket file or a checkpoint.")
        file = found[0]
    content = read_checkpoint_file(file, given)
    if is_ticket(content):
        ticket = read_ticket(content, given)
        return TicketFile(str(path), ticket.state_dict, ticket, _sections(ticket.config, file))
    state = read_state_dict(content if isinstance(content, Mapping) else {}, given)
    state = plain_names(state)
    if any(key.startswith("backbone.") for key in state):
        state = {key.removeprefix("backbone."): v for key, v in state.items() if key.startswith("backbone.")}
    if not any(key.endswith(".mask") for key in state):
        raise InputError(f"{given} holds a network without masks; give a ticket, or a checkpoint of a pruned network.")
    return PrunedNetwork(str(path), state, None, _sections(content, file))


def _sections(content: dict[str, Any], file: Path) -> dict[str, Any]:
    """What a file says about model and data; a section that it leaves out is that of the run whose directory it is in.

    Data modules leave nothing in a checkpoint.
    """
    sections, directory = remembered_config(content), run_directory_of(file)
    try:
        run = {} if directory is None else read_found(latest_config(directory))
    except InputError:
        run = {}
    of_run = {name: run[name] for name in ("model", "data") if isinstance(run, dict) and run.get(name) is not None}
    return {**of_run, **sections}


def read_ticket_file(path: str | Path) -> TicketFile:
    """Reads a ticket, where a checkpoint would not do.

    Raises:
        InputError: no ticket.
    """
    found = read_pruned_network(path)
    if not isinstance(found, TicketFile):
        raise InputError(
            f"ticket={found.path!r} is a checkpoint; give a ticket file, such as one of bnfree lottery run."
        )
    return found


def check_output(output: str | Path, overwrite: bool, *sources: str | Path) -> Path:
    """Refuses a file that is there already, before any work is done.

    Args:
        output: where the new file goes.
        overwrite: whether an existing file may be replaced.
        sources: files that are read, which are never replaced.

    Raises:
        InputError: the file exists, is a directory, or its directory cannot be written to.
    """
    given, path = f"output={str(output)!r}", Path(output).expanduser()
    if path.is_dir():
        raise InputError(f"{given} is a directory; give the name of a file.")
    if any(path.exists() and Path(source).exists() and path.samefile(source) for source in sources):
        raise InputError(f"{given} is the file that is read; give another one.")
    if path.exists() and not overwrite:
        raise InputError(f"{given} exists; give another file, or add --overwrite to replace it.")
    parent = next(directory for directory in path.absolute().parents if directory.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"{given} cannot be written to; give a file in a writable directory.")
    return path
