"""The table of results, by density, and what it comes to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from bnfree.lightning_modules.experiments.lottery.level_results import is_control
from bnfree.lightning_modules.reports.lottery.groups import DENSE, LevelGroup, Verdict, dense_of, judge
from bnfree.lightning_modules.reports.runs.summaries import MISSING, Summary, duration

HEADINGS = {"test": "test acc (%)", "val": "last val acc (%)", "best_val": "best val acc (%)"}
Metric = Literal["test", "val"]


def result_rows(groups: Sequence[LevelGroup], metric: Metric, tolerance: float) -> list[list[str]]:
    """A heading and a row for each group: accuracies, difference to dense, verdict, the ticket's lead over a control.

    Args:
        groups: all groups, by level.
        metric: the accuracy that verdict and differences are about.
        tolerance: see `judge`.
    """
    names: tuple[Literal["test", "val", "best_val"], ...] = ("test", "val", "best_val")
    shown = [name for name in names if any(group.accuracy(name) for group in groups)]
    rows = [["level", "density", "kind", "n", *(HEADINGS[name] for name in shown), "to dense (points)", "verdict",
             "ticket's lead (points)", "time per level"]]  # fmt: skip
    dense = dense_of(groups)
    for group in groups:
        verdict = judge(group, dense, metric, tolerance)
        lead = judge(ticket, group, metric, 0.0) if (ticket := _ticket_of(group, groups)) else None
        accuracies = [summary.percent(singly=False) if (summary := group.accuracy(name)) else MISSING for name in shown]
        rows.append([
            str(group.level), f"{group.density:.3g}", group.name, str(len(group.results)), *accuracies,
            points(verdict), word(verdict), points(lead), duration(group.seconds),
        ])  # fmt: skip
    return rows


def brief_rows(groups: Sequence[LevelGroup], metric: Metric, tolerance: float) -> list[list[str]]:
    """A heading and a row for each level, the kinds side by side: for the terminal.

    Args:
        groups: all groups, by level.
        metric: which accuracy.
        tolerance: see `judge`.
    """
    dense = dense_of(groups)
    kinds = {group.kind: group.name for group in groups if group.kind != DENSE}
    order = sorted(kinds, key=is_control)
    most = max(len(group.results) for group in groups)
    heading = ["level", "density"]
    for kind in order:
        heading += [kinds[kind]] + ["to dense", "verdict"] * (not is_control(kind))
    rows = [heading]
    for level in dict.fromkeys(group.level for group in groups if group.kind != DENSE):
        own = {group.kind: group for group in groups if group.level == level and group.kind != DENSE}
        row = [str(level), f"{next(iter(own.values())).density:.3g}"]
        for kind in order:
            group = own.get(kind)
            verdict = judge(group, dense, metric, tolerance) if group else None
            row += [accuracy(group, metric, most)] + [points(verdict), word(verdict)] * (not is_control(kind))
        rows.append(row)
    return rows


def accuracy(group: LevelGroup | None, metric: Metric, most: int) -> str:
    """Mean and spread in percent, with the number of seeds where it is not the usual one.

    Args:
        group: the group; None: a dash.
        metric: which accuracy.
        most: the usual number of seeds.
    """
    summary = group.accuracy(metric) if group else None
    if summary is None:
        return MISSING
    return summary.percent(singly=False) + (f" (n={len(summary.values)})" if len(summary.values) < most else "")


def word(verdict: Verdict | None) -> str:
    """A verdict in one word."""
    return MISSING if verdict is None else "matching" if verdict.matching else "below"


def points(verdict: Verdict | None) -> str:
    """A difference of accuracies in percentage points, with its spread over the seeds; a dash without one."""
    if verdict is None:
        return MISSING
    difference: Summary = verdict.difference
    spread = f" ± {100 * difference.std:.2f}" if difference.std is not None else ""
    # Rounded first: -0.00 would name a direction where there is none.
    return f"{round(100 * difference.mean, 2) + 0.0:+.2f}{spread}"


def gist(groups: Sequence[LevelGroup], metric: Metric, tolerance: float) -> list[str]:
    """Which is the sparsest matching ticket of each kind, and whether its controls match too.

    Args:
        groups: all groups, by level.
        metric: which accuracy.
        tolerance: see `judge`.
    """
    dense = dense_of(groups)
    lines = []
    for kind in dict.fromkeys(group.kind for group in groups if group.kind != DENSE and not is_control(group.kind)):
        judged = [(g, v) for g in groups if g.kind == kind and (v := judge(g, dense, metric, tolerance))]
        name = next(group.name for group in groups if group.kind == kind)
        if not judged:
            lines.append(f"{name.capitalize()}: no verdict, for no seed has both a ticket and a dense network.")
            continue
        matching = [pair for pair in judged if pair[1].matching]
        if not matching:
            best, verdict = max(judged, key=lambda pair: pair[1].difference.mean)
            lines.append(
                f"No {name} matches the dense network; the nearest is level {best.level} at density "
                f"{best.density:.3g}, {points(verdict)} points."
            )
            continue
        sparsest, verdict = min(matching, key=lambda pair: pair[0].density)
        lines.append(
            f"Sparsest matching {name}: level {sparsest.level} at density {sparsest.density:.3g}, {points(verdict)} "
            f"points to dense{_beside_controls(sparsest, groups, metric, tolerance)}."
        )
    return lines


def _beside_controls(ticket: LevelGroup, groups: Sequence[LevelGroup], metric: Metric, tolerance: float) -> str:
    """What the controls of a matching ticket say: one that matches too needs nothing of what the ticket has."""
    controls = [group for group in groups if _ticket_of(group, groups) is ticket]
    if not controls:
        return "; no control has been trained there" if ticket.kind == "ticket" else ""
    verdicts = {group.name: judge(group, dense_of(groups), metric, tolerance) for group in controls}
    too = [name for name, verdict in verdicts.items() if verdict and verdict.matching]
    if too:
        return f"; but its controls match as well: {'; '.join(too)}"
    return f"; none of its controls matches ({'; '.join(verdicts)})"


def _ticket_of(group: LevelGroup, groups: Sequence[LevelGroup]) -> LevelGroup | None:
    """The ticket that a control checks; None for what is no control."""
    if not is_control(group.kind):
        return None
    return next((other for other in groups if other.kind == "ticket" and other.level == group.level), None)
