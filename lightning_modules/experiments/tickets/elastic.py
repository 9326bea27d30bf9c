"""`bnfree ticket stretch` and `squeeze`: tickets for deeper and shallower networks."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from bnfree.errors import InputError
from bnfree.lightning_modules.experiments.tickets.arguments import Parser, check_output
from bnfree.lightning_modules.experiments.tickets.measured_betas import measured_constants, training_images
from bnfree.lightning_modules.experiments.tickets.networks import ConfiguredNetwork, configured_network
from bnfree.lightning_modules.experiments.tickets.pruned_network import TicketFile, read_ticket_file
from bnfree.lightning_modules.experiments.tickets.targets import (
    COPY,
    add_copy,
    betas_were_measured,
    carried,
    parse_with_network,
)
from bnfree.text_tables import fields
from bnfree.tickets import known_betas, mask_statistics, save_ticket, squeeze, stretch

HOW = """\
Whole residual blocks are {moved}, with masks, weights, gains and shifts; the first block of each stage, stem and
classifier go over one to one. Stages are those of a ReActNet-18 (--blocks_per_stage), or the equal blocks of a
ReActNet-A (--repeated_blocks), whose first block is the one before them. Nothing is trained.

beta belongs to a place in the network and not to a block: it is that of the new network, in this order: of the
checkpoint or ticket given as --to; the one that the ticket had when it was as deep; measured with --calibrate; the
analytic one of a fresh network. The shifts of the signs are scaled with it, so that every block keeps its thresholds.

A mapping says which block goes where: 0:0;1:1,3;2:2,4 puts block 1 of a stage to the places 1 and 3. One serves all
stages, or one for each, joined by |. Every place must be filled once, and 0:0 is part of every mapping."""
DESCRIPTIONS = {
    "stretch": "Makes a ticket for a deeper network.\n\n" + HOW.format(moved="copied")
    + "\n\nSqueezed back in the same order, the ticket is the same again, bit for bit.",
    "squeeze": "Makes a ticket for a shallower network; undoes stretch in the same order.\n\n"
    + HOW.format(moved="dropped"),
}  # fmt: skip
EXAMPLES = {
    "stretch": """\
  bnfree ticket stretch ticket.pt --blocks_per_stage 6,6,6,6 --output deeper.pt
  bnfree ticket stretch ticket.pt --blocks_per_stage 6,6,6,6 --mapping "0:0;1:1,4;2:2,5;3:3" --output deeper.pt
  bnfree ticket stretch reactnet_a.pt --repeated_blocks 8 --order interpolate --output deeper.pt
  bnfree ticket stretch ticket.pt --to configs/deep.yaml --calibrate --output deeper.pt
  bnfree fit --config CONFIG --model.backbone.blocks_per_stage=[6,6,6,6] --model.init_from=deeper.pt""",
    "squeeze": """\
  bnfree ticket squeeze ticket.pt --blocks_per_stage 2,2,2,2 --output shallow.pt
  bnfree ticket squeeze deeper.pt --to ticket.pt --output back.pt""",
}


def run(arguments: Sequence[str]) -> int:
    """Writes a ticket for a network of another depth.

    Args:
        arguments: `stretch` or `squeeze`, and its options.

    Raises:
        InputError: a mistake in what the user gave; nothing has been written then.
    """
    action = arguments[0]
    parser = _parser(action)
    options, network_options = parse_with_network(parser, arguments[1:])
    depth = _depth_options(options)
    if options.to is None and not depth and not any("blocks" in option for option in network_options):
        raise InputError(
            f"the new depth is not given; add --blocks_per_stage, --repeated_blocks or --to, see {parser.prog} --help."
        )
    output = check_output(options.output, options.overwrite, options.ticket)
    pruned = read_ticket_file(options.ticket)
    if options.to is None and "model" not in pruned.sections:
        raise InputError(f"ticket={options.ticket!r} does not say which network it is of; give a config as --to.")
    target = configured_network(pruned.sections, [*depth, *network_options], options.to, options.seed)

    transform = stretch if action == "stretch" else squeeze
    given = (options.order, options.mapping, not options.keep_shifts)
    betas, images = _prepared_betas(pruned, target), None
    ticket = transform(pruned.ticket, target.network, *given)
    if options.calibrate:
        images = training_images(target.data, target.network)
        measured = measured_constants(target.network, ticket.start(), images)
        betas_alone = {name: tensor for name, tensor in measured.items() if name.endswith(".beta")}
        target.network.load_state_dict(betas_alone, strict=False)
        ticket = transform(pruned.ticket, target.network, *given)
        betas = f"measured on {len(images)} training images"
    described = options.to is not None or bool(network_options)
    ticket = carried(ticket, target, options.copy, images, described)
    save_ticket(ticket, output)
    step = ticket.details["elastic"][-1]
    before, after = (mask_statistics(masks).total for masks in (pruned.masks, ticket.masks))
    rows = [
        ("ticket", options.ticket),
        ("blocks", f"{_short(step['from'])} -> {_short(step['to'])}"),
        ("mapping", f'"{step["mapping"]}"'),
        ("survivors", f"{before.kept} of {before.weights} (density {before.density:.4f}) -> {after.kept} of "
                      f"{after.weights} ({after.density:.4f})"),
        ("carried", COPY[options.copy]),
    ]  # fmt: skip
    if any(name.endswith(".beta") for name in ticket.state_dict):
        if betas.startswith("analytic") and betas_were_measured(pruned):
            betas += "; the ticket's were measured, which --calibrate does for the new depth"
        rows += [("beta", betas), ("shifts", "as they were" if options.keep_shifts else "scaled with beta")]
    print(fields([*rows, ("written", str(output))]))
    return 0


def _parser(action: str) -> Parser:
    parser = Parser(action, DESCRIPTIONS[action], EXAMPLES[action])
    parser.add_argument("ticket", metavar="TICKET", help="ticket file")
    parser.add_argument("--blocks_per_stage", metavar="N,N,N,N", help="depth of a ReActNet-18, such as 6,6,6,6")
    parser.add_argument("--repeated_blocks", metavar="N", type=int, help="number of equal blocks of a ReActNet-A")
    parser.add_argument(
        "--order",
        choices=("append", "interpolate"),
        default="append",
        help="blocks 1 2 become 1 2 1 2 (append, the default) or 1 1 2 2 (interpolate); squeezing undoes the same",
    )
    parser.add_argument("--mapping", metavar="TEXT", help="in place of --order which block goes where, see above")
    add_copy(parser)
    parser.add_argument(
        "--keep_shifts", action="store_true", help="do not scale the shifts: keep them in place of the thresholds"
    )
    parser.add_target()
    parser.add_output()
    return parser


def _prepared_betas(pruned: TicketFile, target: ConfiguredNetwork) -> str:
    """Gives the target the betas that the ticket had at its depth, if it had any; says in words which ones it has."""
    if target.betas_from is not None:
        return f"those of {target.betas_from}"
    known = known_betas(pruned.ticket, target.network)
    target.network.load_state_dict(known, strict=False)
    return "those that the ticket had when it was as deep" if known else "analytic, those of a fresh network"


def _depth_options(options: argparse.Namespace) -> list[str]:
    found = []
    if options.blocks_per_stage is not None:
        if re.fullmatch(r"\[?\s*\d+(\s*,\s*\d+)*\s*\]?", options.blocks_per_stage) is None:
            raise InputError(f"blocks_per_stage={options.blocks_per_stage!r} must be four integers, such as 6,6,6,6.")
        found.append(f"--model.backbone.blocks_per_stage=[{options.blocks_per_stage.strip('[] ')}]")
    if options.repeated_blocks is not None:
        found.append(f"--model.backbone.repeated_blocks={options.repeated_blocks}")
    return found


def _short(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))
