"""What stretching and transferring have in common: options of the network, and what the new ticket takes along."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence

from torch import Tensor

from bnfree.lightning_modules.experiments.tickets.arguments import Parser
from bnfree.lightning_modules.experiments.tickets.measured_betas import calibrate_fresh
from bnfree.lightning_modules.experiments.tickets.networks import ConfiguredNetwork, configured_network
from bnfree.lightning_modules.experiments.tickets.pruned_network import PrunedNetwork
from bnfree.tickets import Ticket, carry
from bnfree.tickets.carrying import Carried

COPY = {
    "both": "masks and weights",
    "signs": "masks, and the signs of the weights that survive; their magnitudes are one for each layer",
    "mask": "masks alone; all weights are drawn fresh",
}


def parse_with_network(parser: Parser, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of a command, and those of `bnfree fit` that say what the network is.

    Raises:
        InputError: an option that is neither.
    """
    options, others = parser.parse_known_args(arguments)
    for option in others:
        if not option.startswith(("--model.", "--data.", "--model=", "--data=")) or "=" not in option:
            like = option.startswith(("--model", "--data")) and "=" not in option
            parser.error(f"{option} needs its value after a =" if like else f"unrecognized arguments: {option}")
    return options, others


def add_copy(parser: Parser) -> None:
    """Adds `--copy`."""
    parser.add_argument(
        "--copy",
        choices=list(COPY),
        default="both",
        help="what the new ticket takes along: masks and weights (both, the default), masks and signs, or the mask "
        "alone over fresh weights",
    )


def carried(ticket: Ticket, target: ConfiguredNetwork, what: Carried, images: Tensor | None, described: bool) -> Ticket:
    """A ticket that starts from what the user wants to take along, and remembers the config of its network.

    Args:
        ticket: a ticket for the target.
        target: its network; over fresh weights it is calibrated as the target's config says.
        what: see `bnfree.tickets.carry`.
        images: training images; None: no calibration.
        described: whether the user has described the network; else the ticket's own config says what it is.
    """
    setting = target.model.get("init_args", {}).get("calibration", "full")
    if what == "mask" and images is not None and setting != "none":
        calibrate_fresh(target.network, ticket.masks, images, full=setting == "full")
    ticket = carry(ticket, target.network, what)
    configs = (ticket.config, target.remembered) if described else (target.remembered, ticket.config)
    return dataclasses.replace(ticket, config={**configs[0], **configs[1]})


def betas_were_measured(pruned: PrunedNetwork) -> bool:
    """Whether the betas of a ticket are others than those of a fresh network of its kind."""
    if "model" not in pruned.sections:
        return False
    fresh = configured_network(pruned.sections).network.state_dict()
    return any(name.endswith(".beta") and not tensor.equal(pruned.start[name]) for name, tensor in fresh.items())
