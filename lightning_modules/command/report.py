"""`bnfree report`: reads runs or a lottery, writes figures and tables, prints what they come to."""

from __future__ import annotations

from collections.abc import Sequence

from bnfree.lightning_modules.command.lottery.report import add_tolerance, print_lottery_report
from bnfree.lightning_modules.command.parsing import ActionParser
from bnfree.lightning_modules.reports.report import ReportSettings, report
from bnfree.lightning_modules.reports.run_groups import Group
from bnfree.lightning_modules.reports.run_report import RunsReport, epochs

DESCRIPTION = """\
Writes what runs have measured: report.md with a table, report.png with the curves.

Runs whose configs differ in seeds alone are shown as one, mean and spread; the others side by side, labelled by what
differs in their configs. A figure has a panel for whatever the runs have recorded: accuracy, loss, learning rate,
clipped fraction (bnfree.callbacks.AdaptiveGradientClipping), sign flips and gains (bnfree.callbacks.WeightDynamics).

Given the directory of a sweep, it labels its runs by what is varied, and writes into it. Given that of a lottery, it
writes what bnfree lottery report does."""
EXAMPLES = """\
  bnfree report runs/quickstart/20260101-120000
  bnfree report runs/cifar10_small/* --output comparison
  bnfree report runs/quickstart-sweep
  bnfree report A B --label "with clipping" --label without"""
MISSING_RUN = "RUN is required and not given; name one or several run directories of bnfree fit."


def run(arguments: Sequence[str]) -> None:
    """Writes a report.

    Args:
        arguments: `report` and its options.

    Raises:
        InputError: a mistake in what the user gave; nothing has been written then.
    """
    options = _parser().parse_args(arguments[1:])
    written = report(ReportSettings(options.runs, options.output, options.title, options.label, options.tolerance))
    if not isinstance(written, RunsReport):
        print_lottery_report(written)
        return
    for line in _lines(written.groups):
        print(line)
    print(f"Table: {written.path}")
    for figure in written.figures:
        print(f"Figure: {figure}")


def _lines(groups: Sequence[Group]) -> list[str]:
    """A line for each group, with its runs, epochs and accuracies, and below it one for each stage of a recipe."""
    width = max(len(group.label) for group in groups)
    lines = []
    for group in groups:
        number = f"{len(group.runs)} run{'s' * (len(group.runs) > 1)}"
        lines.append(f"{group.label:<{width}}  {number}  epochs {epochs(group)}  {_figures(group, -1)}".rstrip())
        for index, stage in enumerate(group.stages if len(group.stages) > 1 else []):
            lines.append(f"  {stage}: epochs {epochs(group, [index])}  {_figures(group, index)}".rstrip())
    return lines


def _figures(group: Group, stage: int) -> str:
    found = group.accuracies(stage)
    return "  ".join(f"{heading} {summary.percent(singly=False)} %" for heading, summary in found.items())


def _parser() -> ActionParser:
    parser = ActionParser("bnfree report", DESCRIPTION, EXAMPLES, missing=MISSING_RUN)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="directory of bnfree fit, recipe, sweep or lottery run")
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="where the report goes; by default RUN/report, of several runs runs/reports/<date>-<time>",
    )
    parser.add_argument("--title", metavar="TEXT", help="heading of the report and the figure")
    parser.add_argument(
        "--label",
        metavar="TEXT",
        action="append",
        default=[],
        help="name of a group of runs, in place of what differs; given once for each, in the order of the runs",
    )
    add_tolerance(parser)
    return parser
