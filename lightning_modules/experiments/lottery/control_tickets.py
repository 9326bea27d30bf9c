"""What the controls of a level start from: its ticket with another mask, other weights or other signs."""

from __future__ import annotations

import hashlib

from torch import Tensor, nn

from bnfree.lightning_modules.experiments.lottery.level_training import level_directory, read_rewind_point
from bnfree.lightning_modules.experiments.lottery.planning import LotteryRun
from bnfree.lightning_modules.experiments.lottery.pruning import network_state, read_trained
from bnfree.tickets import (
    Snapshot,
    Ticket,
    overlap,
    random_masks,
    reinitialize,
    rewind,
    shuffle_signs,
    signs_of,
)
from bnfree.tickets.rewinding import seen_weights

RANDOM = {"random_layerwise": "layer", "random_global": "global"}
OF = "control_of"


def draw_seed(seed: int, level: int, kind: str) -> int:
    """The seed of a control's draws: another one for each seed of the run, level and kind."""
    digest = hashlib.sha256(f"{seed}:{level}:{kind}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def control_ticket(run: LotteryRun, kind: str, seed: int, ticket: Ticket) -> Ticket:
    """The control of a ticket.

    Equal files give equal controls, in every process and whenever they are made.

    Args:
        run: the lottery run.
        kind: one of `CONTROLS`.
        seed: seed of the run.
        ticket: the ticket that is to be checked; with `find_in: step1` that of step 1.

    Returns:
        A ticket whose `rewind` is what the control starts from, with the checksum of the ticket's masks in `details`.

    Raises:
        InputError: the rewind point or the dense network's checkpoint is gone or damaged.
    """
    network = run.network(run.finds_in_step1)
    draw = draw_seed(seed, ticket.level, kind)
    if run.settings.rewind in ("weights", "sign"):
        complete: Snapshot = read_rewind_point(run, seed)["state_dict"]
        own = complete
    else:
        # What the ticket starts from lacks what was pruned before; the dense network has a weight everywhere.
        dense = read_trained(level_directory(run, seed, 0, run.finds_in_step1))
        complete, own = _without_masks(network_state(dense)), _without_masks(ticket.state_dict)
    masks, start = ticket.masks, own
    if kind in RANDOM:
        masks, start = random_masks(masks, draw, "global" if RANDOM[kind] == "global" else "layer"), complete
    elif kind == "reinit":
        drawn = {f"{name}.weight": complete[f"{name}.weight"] for name in masks}
        start = reinitialize(network, {**own, **drawn}, masks, draw)
    else:
        start = shuffle_signs(network, own, masks, draw)
    if run.settings.rewind == "sign":
        start = signs_of(network, start, masks)
    rewind(network, start, masks)
    return Ticket.of(
        network,
        rewind=start,
        score="random" if kind in RANDOM else ticket.score,
        scope=RANDOM.get(kind, ticket.scope),
        density=ticket.density,
        level=ticket.level,
        source=f"{ticket.source}, control {kind}",
        details={**ticket.details, "control": kind, "draw": draw, OF: ticket.checksum},
        config=ticket.config,
    )


def compare(network: nn.Module, control: Ticket, ticket: Ticket) -> str:
    """Says what a control shares with its ticket, and what it would share by chance.

    Args:
        network: says which layers are standardised; its weights are not used.
        control: the control.
        ticket: the ticket.
    """
    if control.checksum != ticket.checksum:
        shared = overlap(control.masks, ticket.masks)
        return (
            f"{_percent(shared.both / shared.second)} of the ticket's survivors are its own too (by chance "
            f"{_percent(shared.chance_both / shared.second)})"
        )
    agreeing, by_chance, kept = 0, 0.0, 0
    seen = (seen_weights(network, each.start(), each.masks) for each in (control, ticket))
    for (_, _, one, mask), (_, _, other, _) in zip(*seen, strict=True):
        first, second = ((weight > 0).flatten(1) for weight in (one, other))
        mask = mask.flatten(1)
        count, a, b = mask.sum(1), (first & mask).sum(1), (second & mask).sum(1)
        agreeing += int(((first == second) & mask).sum())
        by_chance += float(((a * b + (count - a) * (count - b)) / count.clamp(min=1)).sum())
        kept += int(count.sum())
    return (
        f"the ticket's mask; {_percent(agreeing / kept)} of the signs are the ticket's (by chance "
        f"{_percent(by_chance / kept)})"
    )


def _without_masks(state: dict[str, Tensor]) -> Snapshot:
    return {name: value for name, value in state.items() if not name.endswith(".mask")}


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
