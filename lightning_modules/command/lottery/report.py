"""`bnfree lottery report`: what it reads from the command line, and what it prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bnfree.lightning_modules.command.parsing import ActionParser
from bnfree.lightning_modules.reports.lotteries import TOLERANCE, dense_of, group_levels, read_lottery_run
from bnfree.text_tables import columns

if TYPE_CHECKING:
    from bnfree.lightning_modules.reports.lottery_report import LotteryReport

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
  bnfree lottery report runs/digits_lottery
  bnfree lottery report runs/digits_lottery --tolerance 0.005"""
MISSING_DIR = "DIR is required and not given; name the directory of a bnfree lottery run."


def run(arguments: Sequence[str]) -> None:
    """Writes the report and prints its table.

    Args:
        arguments: `report` and its options.

    Raises:
        InputError: a mistake in what the user gave; nothing has been written then.
    """
    parser = ActionParser("bnfree lottery report", DESCRIPTION, EXAMPLES, missing=MISSING_DIR)
    parser.add_argument("directory", metavar="DIR", help="directory of a bnfree lottery run")
    add_tolerance(parser)
    options = parser.parse_args(arguments[1:])
    # After the parser, since counting needs torch and the manual does not.
    from bnfree.lightning_modules.reports.lottery_report import report_lottery

    print_lottery_report(report_lottery(options.directory, options.tolerance))


def add_tolerance(parser: ActionParser) -> None:
    """Adds `--tolerance`."""
    parser.add_argument(
        "--tolerance",
        metavar="SHARE",
        type=float,
        default=TOLERANCE,
        help="how far the mean accuracy of a matching ticket may lie below the dense one (default: %(default)s, which "
        "is one point)",
    )


def print_lottery_report(written: LotteryReport) -> None:
    """Prints the accuracies by level, what they come to, and where the report is."""
    from bnfree.lightning_modules.reports.lottery_tables import accuracy_text, brief_rows

    metric = written.lottery.metric
    which = "test" if metric == "test" else "last validation"
    print(f"Dense network, {which} accuracy in %: {accuracy_text(dense_of(written.groups), metric, 1)}")
    rows = brief_rows(written.groups, metric, written.tolerance)
    for line in [*_aligned(rows if len(rows) > 1 else []), *written.verdicts]:
        print(line)
    print(f"Report: {written.path}")


def control_table(directory: Path, tolerance: float = TOLERANCE) -> str:
    """A row for each ticket and each of its controls: accuracy, difference to dense, verdict, the ticket's lead.

    Args:
        directory: of a lottery run.
        tolerance: how far a matching level may lie below the dense network, as a share from 0 to 1.
    """
    from bnfree.lightning_modules.reports.lottery_tables import control_rows

    lottery = read_lottery_run(directory)
    rows = control_rows(group_levels(lottery.levels), lottery.metric, tolerance)
    return "\n".join(["Tickets and their controls, differences in percentage points:", *_aligned(rows)])


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    return columns(rows, left=len(rows[0]), width=None) if rows else []
