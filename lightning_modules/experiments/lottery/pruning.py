"""From the trained network of one level to the ticket of the next one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError
from bnfree.lightning_modules.experiments.lottery.planning import LotteryRun
from bnfree.lightning_modules.training.run_directory import CHECKPOINTS
from bnfree.state_dicts import read_checkpoint_file
from bnfree.tickets import FlipCounts, Masks, Snapshot, Ticket, apply, prune, signs_of
from bnfree.tickets.scores import get_score
from bnfree.tickets.ticket_file import CONFIG_KEYS

GRADIENTS = "gradients.pt"


def last_checkpoint(directory: Path) -> Path:
    """The checkpoint that a fit in this run directory has ended with."""
    return directory / CHECKPOINTS / "last.ckpt"


def read_trained(directory: Path) -> dict[str, Any]:
    """The checkpoint that a fit has ended with.

    Raises:
        InputError: it is gone or damaged.
    """
    path = last_checkpoint(directory)
    content: dict[str, Any] = read_checkpoint_file(path, f"the trained weights {str(path)!r}")
    return content


def network_state(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The weights and masks of the network in a checkpoint, under its own names."""
    state = {
        ".".join(part for part in name.split(".") if part != "_orig_mod"): value
        for name, value in checkpoint["state_dict"].items()
    }
    own = {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}
    return own or state


def next_ticket(run: LotteryRun, seed: int, level: int, trained: Path, start: Snapshot, step1: bool) -> Ticket:
    """Prunes what a level has trained.

    Equal files give equal tickets, in every process and whenever they are made.

    Args:
        run: the lottery run.
        seed: its seed.
        level: level of the new ticket.
        trained: run directory of the level before.
        start: weights of the rewind point.
        step1: whether these are the networks with real weights.

    Raises:
        InputError: a checkpoint that is gone, or one of another network.
    """
    settings, checkpoint = run.settings, read_trained(trained)
    network = run.network(step1)
    network.load_state_dict(network_state(checkpoint))
    layers = run.layers(network)
    masks = prune(
        network,
        run.densities[level],
        score=settings.score,
        scope=settings.scope,
        layers=layers,
        min_per_filter=settings.min_per_filter,
        min_layer_density=settings.min_layer_density,
        gradients=_gradients(trained, settings.score),
        flip_rates=_flip_rates(checkpoint, layers, settings.score),
        seed=seed,
    )
    apply(network, masks)
    return Ticket.of(
        network,
        rewind=rewound(run, network, start, masks),
        score=settings.score,
        scope=settings.scope,
        density=run.densities[level],
        level=level,
        source=f"{run.directory.name}, seed {seed}",
        details={"seed": seed, "rewind": settings.rewind, "rewind_point": settings.rewind_point},
        config={key: checkpoint[key] for key in CONFIG_KEYS if key in checkpoint},
    )


def carried_ticket(run: LotteryRun, found: Ticket, trained: Path) -> Ticket:
    """The ticket of step 2 for masks that were found in step 1: its training starts from the weights of step 1.

    Args:
        run: the lottery run.
        found: the ticket of step 1.
        trained: run directory in which that one was trained.
    """
    checkpoint = read_trained(trained)
    network = run.network()
    network.load_state_dict(network_state(checkpoint))
    details = {**found.details, "found_in": "step1"}
    config = {key: checkpoint[key] for key in CONFIG_KEYS if key in checkpoint}
    return Ticket.of(
        network, score=found.score, scope=found.scope, density=found.density, level=found.level, source=found.source,
        details=details, config=config,
    )  # fmt: skip


def rewound(run: LotteryRun, network: nn.Module, start: Snapshot, masks: Masks) -> Snapshot | None:
    """What of the rewind point's weights a ticket starts from; None: from the weights that it was found with."""
    if run.settings.rewind == "weights":
        return start
    return signs_of(network, start, masks) if run.settings.rewind == "sign" else None


def _gradients(trained: Path, score: str) -> dict[str, Tensor] | None:
    if "gradient" not in get_score(score).needs:
        return None
    path = trained / GRADIENTS
    gradients: dict[str, Tensor] = read_checkpoint_file(path, f"the gradients for score={score!r}, {str(path)!r}")
    return gradients


def _flip_rates(checkpoint: dict[str, Any], layers: dict[str, BinaryConv2d], score: str) -> dict[str, Tensor] | None:
    if "flip_rate" not in get_score(score).needs:
        return None
    for state in checkpoint.get("callbacks", {}).values():
        if isinstance(state, dict) and "flips" in state:
            counts = FlipCounts(layers)
            counts.load_state_dict(state["flips"])
            return counts.rates()
    raise InputError(f"the checkpoint of the level before has counted no flips, which score={score!r} needs.")


def write_start(rewind_point: dict[str, Any], ticket: Ticket, path: Path) -> None:
    """Writes the checkpoint that a level starts from whose rewind point lies behind the first step.

    Step, epoch, position in the data, learning rates and schedule are those of the rewind point. So is the optimizer's
    state (momentum, moments), where the surviving weights are: a ticket that prunes nothing repeats the dense training
    to the bit. Where they are others (signs alone, trained weights, controls) it is empty.

    Args:
        rewind_point: what `rewind.pt` holds.
        ticket: says the weights and masks.
        path: where it goes; it is there as a whole or not at all.
    """
    checkpoint = dict(rewind_point["checkpoint"])
    start = ticket.start()
    rewound = replace(ticket, rewind=rewind_point["state_dict"]).start()
    if not all(torch.equal(start[name], value) for name, value in rewound.items()):
        checkpoint["optimizer_states"] = [{**state, "state": {}} for state in checkpoint["optimizer_states"]]
        for key in ("current_model_state", "averaging_state"):
            checkpoint.pop(key, None)
        checkpoint["state_dict"] = _with(checkpoint["state_dict"], start, ticket.masks)
    elif "current_model_state" in checkpoint:
        # Of averaged weights, only what is pruned changes.
        checkpoint["current_model_state"] = _with(checkpoint["current_model_state"], start, ticket.masks)
        checkpoint["state_dict"] = _with(checkpoint["state_dict"], {}, ticket.masks)
    else:
        checkpoint["state_dict"] = _with(checkpoint["state_dict"], start, ticket.masks)
    unfinished = path.with_name(f".{path.name}.unfinished")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, unfinished)
    unfinished.replace(path)


def _with(state: dict[str, Tensor], weights: dict[str, Tensor], masks: Masks) -> dict[str, Tensor]:
    """A module's state dict with other weights of its network, and with masks, which the old one has not."""
    prefix = "backbone." if any(name.startswith("backbone.") for name in state) else ""
    result = {}
    for name, value in state.items():
        own = ".".join(part for part in name.removeprefix(prefix).split(".") if part != "_orig_mod")
        layer = own.removesuffix(".weight")
        value = weights.get(own, value)
        if own.endswith(".weight") and layer in masks:
            value = value.masked_fill(~masks[layer], 0)
            result[name.removesuffix("weight") + "mask"] = masks[layer]
        result[name] = value
    return result
