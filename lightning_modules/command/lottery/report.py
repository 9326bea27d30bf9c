"""`bnfree lottery report`: what it reads from the command line, and what it prints."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

from bnfree.errors import InputError
from bnfree.lightning_modules.command.report_command import Parser
from bnfree.lightning_modules.reports.lottery.groups import TOLERANCE, dense_of, group_levels
from bnfree.lightning_modules.reports.lottery.reading import read_lottery
from bnfree.lightning_modules.reports.lottery.results import accuracy, brief_rows, gist

DESCRIPTION = """\
Writes what a lottery run has found into its directory:

  levels.csv     a row for each level, seed and kind: density, counted zeros, accuracies, steps, checksums
  layers.csv     the same layer by layer: kept weights, zeros, emptied filters, operations, stored bits
  report.md      accuracies by density with mean and spread, verdicts, sizes, layers, times, settings
  accuracy.png   accuracy over density: ticket, controls and the band of the dense network
  layers.png     density of each layer
  overlaps.png   what the masks of levels, seeds and controls have in common, against chance

bnfree lottery run and controls write it by themselves when they end. A run that is still going on is reported as far as
its levels have finished."""
EXAMPLES = """\
examples:
  bnfree lottery report runs/digits_lottery
  bnfree lottery report runs/digits_lottery --tolerance 0.005"""
MISSING_DIR = "DIR is required and not given; name the directory of a bnfree lottery run."


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of `bnfree lottery report`.

    Raises:
        InputError: an unknown option, one without its value, a tolerance that is no share, or no directory.
    """
    parser = Parser("bnfree lottery report", DESCRIPTION, EXAMPLES, MISSING_DIR)
    parser.add_argument("directory", metavar="DIR", help="directory of a bnfree lottery run")
    parser.add_argument(
        "--tolerance",
        metavar="SHARE",
        type=float,
        default=TOLERANCE,
        help="how far the mean accuracy of a matching ticket may lie below the dense one (default: %(default)s, which "
        "is one point)",
    )
    options = parser.parse_args(arguments)
    if not (math.isfinite(options.tolerance) and 0 <= options.tolerance <= 1):
        raise InputError(f"tolerance={options.tolerance:g} must be a share from 0 to 1, such as 0.01 for one point.")
    return options


def run(arguments: Sequence[str]) -> None:
    """Writes the report and prints its table.

    Args:
        arguments: `report` and its options.

    Raises:
        InputError: a mistake in what the user gave; nothing has been written then.
    """
    options = parse(arguments[1:])
    from bnfree.lightning_modules.reports.lottery.writing import write_report

    path = write_report(options.directory, options.tolerance)
    lottery = read_lottery(options.directory)
    groups = group_levels(lottery.levels)
    rows = brief_rows(groups, lottery.metric, options.tolerance)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    which = "test" if lottery.metric == "test" else "last validation"
    print(f"Dense network, {which} accuracy in %: {accuracy(dense_of(groups), lottery.metric, 1)}")
    for row in rows if len(rows) > 1 else []:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for line in gist(groups, lottery.metric, options.tolerance):
        print(line)
    print(f"Report: {path}")
