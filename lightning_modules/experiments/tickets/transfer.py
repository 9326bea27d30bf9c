"""`bnfree ticket transfer`: a ticket for another data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from bnfree.lightning_modules.experiments.tickets.arguments import Parser, check_output
from bnfree.lightning_modules.experiments.tickets.measured_betas import measured_constants, training_images
from bnfree.lightning_modules.experiments.tickets.networks import configured_network
from bnfree.lightning_modules.experiments.tickets.pruned_network import read_ticket_file
from bnfree.lightning_modules.experiments.tickets.targets import (
    COPY,
    add_copy,
    carried,
    parse_with_network,
)
from bnfree.lightning_modules.reports.cost_table import short
from bnfree.text_tables import fields, table
from bnfree.tickets import Ticket, save_ticket, take_snapshot, transfer

DESCRIPTION = """\
Makes a ticket for another data set: other classes, other image channels, another stem.

A part of the network (stem, body, classifier) is carried over whole or drawn fresh whole. Carried over is what has the
same shapes, with masks, weights and betas. Drawn fresh is the classifier, always, since the same number of classes are
not the same classes (--keep_classifier: they are), and a part without masks whose shapes differ, such as the stem for
other image channels. Depth, width and normalisation must agree; stretch or squeeze first where the depth differs.

The report says what happened to each part. A run that starts from a ticket does not calibrate: --calibrate measures the
betas on images of the new data."""
EXAMPLES = """\
  bnfree ticket transfer cifar10.pt --to configs/cifar100_step2.yaml --output cifar100.pt
  bnfree ticket transfer digits.pt --to configs/fashion_mnist.yaml --model.backbone.width=16 --calibrate --output f.pt
  bnfree fit --config configs/cifar100_step2.yaml --model.init_from=cifar100.pt"""


def run(arguments: Sequence[str]) -> int:
    """Writes a ticket for another data set.

    Args:
        arguments: `transfer` and its options.

    Raises:
        InputError: a mistake in what the user gave; nothing has been written then.
    """
    parser = Parser("transfer", DESCRIPTION, EXAMPLES)
    parser.add_argument("ticket", metavar="TICKET", help="ticket file")
    parser.add_argument("--keep_classifier", action="store_true", help="carry the classifier over too")
    add_copy(parser)
    parser.add_target()
    parser.add_output()
    options, network_options = parse_with_network(parser, arguments[1:])
    if options.to is None:
        parser.error("the following arguments are required: --to")
    output = check_output(options.output, options.overwrite, options.ticket)
    pruned = read_ticket_file(options.ticket)
    target = configured_network(pruned.sections, network_options, options.to, options.seed)
    shapes = take_snapshot(target.network)

    ticket, images = transfer(pruned.ticket, target.network, options.keep_classifier), None
    betas = "those of the ticket"
    if options.calibrate:
        images = training_images(target.data, target.network)
        ticket = _calibrated(ticket, target.network, images)
        betas = f"measured on {len(images)} training images, with the shifts of the signs"
    elif options.copy == "mask":
        betas = "analytic, those of a fresh network"
    ticket = carried(ticket, target, options.copy, images, described=True)
    save_ticket(ticket, output)
    print(_report(pruned.state_dict, shapes, ticket.details["transfer"][-1]["fresh"]))
    rows = [("ticket", options.ticket), ("carried", COPY[options.copy])]
    if any(name.endswith(".beta") for name in ticket.state_dict):
        rows.append(("beta", betas))
    print("\n" + fields([*rows, ("written", str(output))]))
    return 0


def _calibrated(ticket: Ticket, network: nn.Module, images: Tensor) -> Ticket:
    """The ticket with betas and shifts that fit other images, in the weights that training starts from."""
    measured = measured_constants(network, ticket.start(), images)
    if ticket.rewind is None:
        return dataclasses.replace(ticket, state_dict={**ticket.state_dict, **measured})
    return dataclasses.replace(ticket, rewind={**ticket.rewind, **measured})


def _report(before: Mapping[str, Tensor], after: Mapping[str, Tensor], fresh: Sequence[str]) -> str:
    """What happened to each part of the network."""
    rows = []
    for part in dict.fromkeys(name.partition(".")[0] for name in after):
        tensors = {name: tensor for name, tensor in after.items() if name.partition(".")[0] == part}
        masks = sum(name.partition(".")[0] == part and name.endswith(".mask") for name in before)
        count = short(sum(tensor.numel() for tensor in tensors.values()))
        rows.append((part, "drawn fresh" if part in fresh else "carried over", str(len(tensors)), count, str(masks)))
        for name, tensor in tensors.items() if part in fresh else ():
            old = tuple(before[name].shape) if name in before else "nothing"
            rows.append((f"  {name}", f"{old} -> {tuple(tensor.shape)}", "", "", ""))
    return table(("part", "fate", "tensors", "numbers", "masks"), rows, left=2)
