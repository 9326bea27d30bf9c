"""`bnfree ticket info`: what a ticket is, where it comes from, and what its masks look like."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bnfree.errors import InputError
from bnfree.lightning_modules.experiments.tickets.arguments import Parser
from bnfree.lightning_modules.experiments.tickets.networks import configured_network
from bnfree.lightning_modules.experiments.tickets.origins import origin_fields
from bnfree.lightning_modules.experiments.tickets.pruned_network import PrunedNetwork, read_pruned_network
from bnfree.lightning_modules.reports.cost_table import short
from bnfree.text_tables import fields, table
from bnfree.tickets import effective_zeros, mask_statistics, occupancy
from bnfree.tickets.statistics import LayerDensity

DESCRIPTION = """\
Says what a ticket is: its network, how its masks were found, what its training starts from, which tickets it was made
of, who has signed it; and for each pruned layer

  kept, density     survivors, and their share of the weights
  zeros             weights that are 0 where it counts, in the weight that the convolution uses, counted in the network
  empty             filters without a survivor
  occupied          share of the kernels (kH x kW weights between one input channel and one filter) with a survivor;
                    owners' marks lie there (bnfree ticket sign)
  stored            bits of masks and signs under a perfect entropy coder; a dense binary layer takes 1 bit a weight

TICKET is a ticket file, a checkpoint of a pruned network, or a directory with one of them."""
EXAMPLES = """\
  bnfree ticket info ticket.pt
  bnfree ticket info runs/digits_lottery/seed_0/level_03"""
TITLES = ("layer", "shape", "weights", "kept", "density", "zeros", "empty", "occupied", "stored", "bits/w")
# Below this density masks and signs take less than the 1 bit a weight of a dense binary layer: H(d) + d = 1.
SMALLER_BELOW = 0.227


def run(arguments: Sequence[str]) -> int:
    """Prints what a ticket is.

    Args:
        arguments: `info` and its options.

    Raises:
        InputError: no ticket, or a damaged one.
    """
    parser = Parser("info", DESCRIPTION, EXAMPLES)
    parser.add_argument("ticket", metavar="TICKET", help="ticket file, or checkpoint of a pruned network")
    pruned = read_pruned_network(parser.parse_args(arguments[1:]).ticket)
    zeros, why_not = _zeros(pruned)
    print(fields([*origin_fields(pruned), *([] if why_not is None else [("zeros", why_not)])]))
    print(f"\n{layer_table(pruned.masks, zeros)}\n\n{storage(pruned.masks)}")
    return 0


def layer_table(masks: dict[str, Tensor], zeros: dict[str, int] | None) -> str:
    """The masks, one layer a line.

    Args:
        masks: by name of the layer.
        zeros: weights of each layer that are 0 where it counts; None: not known.
    """
    statistics = mask_statistics(masks)
    shares = {name: occupancy(mask).double().mean().item() for name, mask in masks.items()}
    kernels = {name: mask.shape[0] * mask.shape[1] for name, mask in masks.items()}
    shares["all"] = sum(shares[name] * count for name, count in kernels.items()) / sum(kernels.values())
    counts = None if zeros is None else {**zeros, "all": sum(zeros.get(name, 0) for name in masks)}
    rows = [_row(row, masks.get(row.name), counts, shares[row.name]) for row in (*statistics.layers, statistics.total)]
    return table(TITLES, rows[:-1], rows[-1], left=2)


def storage(masks: dict[str, Tensor]) -> str:
    """What the masks cost and save, in sentences."""
    layers = mask_statistics(masks)
    weights, density = layers.total.weights, layers.total.density
    stored = sum(row.bits_per_weight * row.weights for row in layers.layers)
    ratio = weights / max(stored, 1)
    verdict = (
        f"{ratio:.2f} times smaller" if ratio > 1 else f"{1 / ratio:.2f} times larger" if ratio else "nothing left"
    )
    return fields(
        [
            (
                "Storage",
                f"{short(stored)} bits entropy-coded (mask and signs), {short(weights * (1 + density))} bits as a raw "
                f"mask and signs, against {short(weights)} bits of dense binary layers: {verdict}. Only below density "
                f"{SMALLER_BELOW} is a pruned binary layer smaller than a dense one.",
            ),
            ("Speed", "zeros at these places save no time by themselves."),
        ]
    )


def _row(row: LayerDensity, mask: Tensor | None, zeros: dict[str, int] | None, occupied: float) -> tuple[str, ...]:
    shape = "" if mask is None else "x".join(map(str, mask.shape))
    return (
        row.name, shape, short(row.weights), str(row.kept), f"{row.density:.4f}",
        "?" if zeros is None else str(zeros.get(row.name, "?")), str(row.empty_filters), f"{occupied:.3f}",
        short(row.bits_per_weight * row.weights), f"{row.bits_per_weight:.2f}",
    )  # fmt: skip


def _zeros(pruned: PrunedNetwork) -> tuple[dict[str, int] | None, str | None]:
    """Zeros of the effective weights, counted in the network; or why they cannot be."""
    if "model" not in pruned.sections:
        return None, "not counted: the file does not say which network it is of"
    try:
        network = configured_network(pruned.sections).network
        network.load_state_dict(pruned.state_dict)
    except (InputError, RuntimeError) as error:
        return None, f"not counted: the network cannot be built ({' '.join(str(error).split())[:120]})"
    return effective_zeros(network), None
