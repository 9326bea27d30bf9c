"""The tickets that levels train: pruned from the level before, carried from step 1 to step 2, or a control's."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bnfree import checksums
from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError
from bnfree.files import whole_file
from bnfree.lightning_modules.experiments.lottery.plan import LotteryPlan
from bnfree.lightning_modules.training.class_names import remembered_names
from bnfree.lightning_modules.training.run_directory import CHECKPOINTS
from bnfree.plugins import name_of, resolve
from bnfree.state_dicts import plain_name, read_checkpoint_file, weights_of
from bnfree.tickets import (
    ControlledTicket,
    FlipCounts,
    Masks,
    Snapshot,
    Ticket,
    apply,
    prune,
    rewind,
    signs_of,
)
from bnfree.tickets.scores import get_score
from bnfree.tickets.ticket_file import CONFIG_KEYS, NAMES_KEY

GRADIENTS = "gradients.pt"
OF = "control_of"
"""Where a control's ticket notes the checksum of the ticket that it was made of."""


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


def read_rewind_point(path: Path) -> dict[str, Any]:
    """What the file of a rewind point holds, see `bnfree.callbacks.rewind_checkpoint`.

    Raises:
        InputError: it is gone or damaged.
    """
    content: dict[str, Any] = read_checkpoint_file(path, f"the rewind point {str(path)!r}")
    return content


def network_state(checkpoint: dict[str, Any], network: nn.Module) -> dict[str, Tensor]:
    """The weights and masks of a network in a checkpoint, under its own names."""
    return weights_of(network, checkpoint["state_dict"])


def next_ticket(plan: LotteryPlan, seed: int, level: int, trained: Path, start: Snapshot, step1: bool) -> Ticket:
    """Prunes what a level has trained.

    Equal files give equal tickets, in every process and whenever they are made.

    Args:
        plan: of the lottery.
        seed: its seed.
        level: level of the new ticket.
        trained: run directory of the level before.
        start: weights of the rewind point.
        step1: whether these are the networks with real weights.

    Raises:
        InputError: a checkpoint that is gone, or one of another network.
    """
    settings, checkpoint = plan.settings, read_trained(trained)
    network = plan.network(step1)
    network.load_state_dict(network_state(checkpoint, network))
    layers = plan.layers(network)
    masks = prune(
        network,
        plan.densities[level],
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
        rewind=rewound(plan, network, start, masks),
        score=settings.score,
        scope=settings.scope,
        density=plan.densities[level],
        level=level,
        source=f"{plan.directory.name}, seed {seed}",
        details={"seed": seed, "rewind": settings.rewind, "rewind_point": settings.rewind_point},
        config=remembered_by(checkpoint),
    )


def remembered_by(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What a ticket takes over of a checkpoint besides weights: the sections of its config, and the class names."""
    names = remembered_names(checkpoint)
    config = {key: checkpoint[key] for key in CONFIG_KEYS if key in checkpoint}
    return config if names is None else {**config, NAMES_KEY: names}


def carried_ticket(plan: LotteryPlan, found: Ticket, trained: Path) -> Ticket:
    """The ticket of step 2 for masks that were found in step 1: its training starts from the weights of step 1.

    Args:
        plan: of the lottery.
        found: the ticket of step 1.
        trained: run directory in which that one was trained.
    """
    checkpoint = read_trained(trained)
    network = plan.network()
    network.load_state_dict(network_state(checkpoint, network))
    details = {**found.details, "found_in": "step1"}
    return Ticket.of(
        network, score=found.score, scope=found.scope, density=found.density, level=found.level, source=found.source,
        details=details, config=remembered_by(checkpoint),
    )  # fmt: skip


def control_ticket(plan: LotteryPlan, control: Any, seed: int, ticket: Ticket) -> Ticket:
    """The control of a ticket.

    Equal files give equal controls, in every process and whenever they are made.

    Args:
        plan: of the lottery.
        control: a name, a dotted path, a class or a function, see `bnfree.tickets.controls`.
        seed: seed of the run.
        ticket: the ticket that is to be checked; with `find_in: step1` that of step 1.

    Returns:
        A ticket whose `rewind` is what the control starts from, with the checksum of the ticket's masks in `details`.

    Raises:
        InputError: no such control, or the rewind point or the dense network's checkpoint is gone or damaged.
    """
    plugin, kind = resolve("control", control, "controls"), control_kind(control)
    network, seed_of_draws = plan.network(plan.finds_in_step1), draw_seed(seed, ticket.level, kind)
    if plan.settings.rewind in ("weights", "sign"):
        complete: Snapshot = read_rewind_point(plan.rewind_file(seed))["state_dict"]
        own = complete
    else:
        # What the ticket starts from lacks what was pruned before; the dense network has a weight everywhere.
        dense = read_trained(plan.folder(seed, 0, plan.finds_in_step1))
        complete, own = _without_masks(network_state(dense, network)), _without_masks(ticket.state_dict)
    draw = getattr(plugin, "draw", plugin)
    masks, start = draw(ControlledTicket(network, ticket.masks, own, complete, seed_of_draws))
    if plan.settings.rewind == "sign":
        start = signs_of(network, start, masks)
    rewind(network, start, masks)
    drawn = any(not torch.equal(mask, ticket.masks[name]) for name, mask in masks.items())
    return Ticket.of(
        network,
        rewind=start,
        score="random" if drawn else ticket.score,
        scope=getattr(plugin, "scope", None) or ticket.scope,
        density=ticket.density,
        level=ticket.level,
        source=f"{ticket.source}, control {kind}",
        details={**ticket.details, "control": kind, "draw": seed_of_draws, OF: ticket.checksum},
        config=ticket.config,
    )


def control_kind(control: Any) -> str:
    """What a control is called in directories, tables and files: its name as a plugin, or its dotted path."""
    plugin = resolve("control", control, "controls")
    name = name_of("control", plugin) if hasattr(plugin, "__qualname__") else str(control)
    return re.sub(r"[^\w.-]", "_", name)


def draw_seed(seed: int, level: int, kind: str) -> int:
    """The seed of a control's draws: another one for each seed of the run, level and kind."""
    digest = hashlib.sha256(f"{seed}:{level}:{kind}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _without_masks(state: dict[str, Tensor]) -> Snapshot:
    return {name: value for name, value in state.items() if not name.endswith(".mask")}


def rewound(plan: LotteryPlan, network: nn.Module, start: Snapshot, masks: Masks) -> Snapshot | None:
    """What of the rewind point's weights a ticket starts from; None: from the weights that it was found with."""
    if plan.settings.rewind == "weights":
        return start
    return signs_of(network, start, masks) if plan.settings.rewind == "sign" else None


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
    with whole_file(path) as unfinished:
        checksums.save(checkpoint, unfinished)


def _with(state: dict[str, Tensor], weights: dict[str, Tensor], masks: Masks) -> dict[str, Tensor]:
    """A module's state dict with other weights of its network, and with masks, which the old one has not."""
    first = next(iter(weights), next((f"{layer}.weight" for layer in masks), ""))
    prefix = next((name.removesuffix(first) for name in map(plain_name, state) if f".{name}".endswith(f".{first}")), "")
    result = {}
    for name, value in state.items():
        own = plain_name(name).removeprefix(prefix)
        layer = own.removesuffix(".weight")
        value = weights.get(own, value)
        if own.endswith(".weight") and layer in masks:
            value = value.masked_fill(~masks[layer], 0)
            result[name.removesuffix("weight") + "mask"] = masks[layer]
        result[name] = value
    return result
