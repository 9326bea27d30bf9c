"""The outcome of controls beside their tickets, for the terminal."""

from __future__ import annotations

from pathlib import Path

from bnfree.lightning_modules.experiments.lottery.level_results import is_control
from bnfree.lightning_modules.reports.lottery.groups import TOLERANCE, dense_of, group_levels, judge
from bnfree.lightning_modules.reports.lottery.reading import read_lottery
from bnfree.lightning_modules.reports.lottery.results import accuracy, points, word


def control_table(directory: Path, tolerance: float = TOLERANCE) -> str:
    """A row for each ticket and each of its controls: accuracy, difference to dense, verdict, the ticket's lead.

    Args:
        directory: of a lottery run.
        tolerance: how far a matching level may lie below the dense network, as a share from 0 to 1.
    """
    lottery = read_lottery(directory)
    groups = group_levels(lottery.levels)
    dense, metric = dense_of(groups), lottery.metric
    most = max(len(group.results) for group in groups)
    which = "test" if metric == "test" else "last val"
    rows = [["level", "density", "kind", f"{which} acc (%)", "to dense", "verdict", "ticket minus control"]]
    for ticket in (group for group in groups if group.kind == "ticket"):
        controls = [group for group in groups if group.level == ticket.level and is_control(group.kind)]
        for group in (ticket, *controls) if controls else ():
            verdict = judge(group, dense, metric, tolerance)
            lead = judge(ticket, group, metric, 0.0)
            rows.append([
                str(group.level), f"{group.density:.3g}", group.name, accuracy(group, metric, most), points(verdict),
                word(verdict), points(lead) if group is not ticket else "",
            ])  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(["Tickets and their controls, differences in percentage points:", *lines])
