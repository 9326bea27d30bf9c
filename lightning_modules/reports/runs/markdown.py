"""The report as Markdown."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from bnfree.lightning_modules.reports.runs.groups import Comparison, Group
from bnfree.lightning_modules.reports.runs.settings import written
from bnfree.lightning_modules.reports.runs.summaries import (
    ACCURACIES,
    MISSING,
    accuracies,
    epochs,
    seeds,
    time_per_run,
)

MARK = "<!-- bnfree report of "


def report(comparison: Comparison, title: str, figure: str, directory: Path) -> str:
    """The text of `report.md`.

    Args:
        comparison: the groups of runs.
        title: the heading.
        figure: path of the figure, relative to the report.
        directory: where the report goes; links to the runs are relative to it.
    """
    groups = comparison.groups
    parts = [f"# {title}", f"![{title}]({figure})", _results(groups)]
    if any(len(group.runs) > 1 for group in groups):
        parts.append("Mean ± sample standard deviation over the seeds (the single values in the order of the seeds).")
    parts += _notes(groups)
    if any(stage for group in groups for stage in group.stages):
        parts += ["## Stages", _stages(groups)]
    if comparison.settings:
        parts += ["## Settings that differ", _settings(comparison)]
    parts += ["## Runs", "\n".join(_links(group, directory) for group in groups)]
    runs = [link(run.directory, directory) for group in groups for run in group.runs]
    return "\n\n".join(parts) + f"\n\n{mark(runs)}\n"


def mark(runs: Sequence[str]) -> str:
    """A line that tells later reports which runs this one is of.

    Args:
        runs: directories of the runs, relative to the report's.
    """
    # Two dashes would end the comment.
    return f"{MARK}{json.dumps(sorted(runs)).replace('--', chr(92) + 'u002d-')} -->"


def link(path: Path, directory: Path) -> str:
    """A path as it is seen from a directory."""
    return Path(os.path.relpath(path.absolute(), directory.absolute())).as_posix()


def _results(groups: list[Group]) -> str:
    found = [accuracies(group) for group in groups]
    columns = [heading for heading in ACCURACIES if any(heading in one for one in found)]
    rows = [["runs", "seeds", "epochs", *(f"{heading} (%)" for heading in columns), "time per run"]]
    for group, values in zip(groups, found, strict=True):
        cells = [values[heading].percent() if heading in values else MISSING for heading in columns]
        rows.append([group.label, seeds(group), epochs(group), *cells, time_per_run(group)])
    return table(rows)


def _stages(groups: list[Group]) -> str:
    found = {
        (g, i): accuracies(group, i) for g, group in enumerate(groups) for i, stage in enumerate(group.stages) if stage
    }
    columns = [heading for heading in ACCURACIES if any(heading in one for one in found.values())]
    rows = [["runs", "stage", "epochs", *(f"{heading} (%)" for heading in columns), "time per run"]]
    for (g, i), values in found.items():
        group = groups[g]
        cells = [values[heading].percent() if heading in values else MISSING for heading in columns]
        rows.append([group.label, group.stages[i], epochs(group, [i]), *cells, time_per_run(group, i)])
    return table(rows)


def _settings(comparison: Comparison) -> str:
    rows = [["setting", *(group.label for group in comparison.groups)]]
    for (stage, name), values in comparison.settings.items():
        cells = [f"`{written(value)}`" if value != MISSING else MISSING for value in values]
        rows.append([f"{stage}: `{name}`" if stage else f"`{name}`", *cells])
    return table(rows)


def _notes(groups: list[Group]) -> list[str]:
    lines = []
    for group in groups:
        for run in group.runs:
            if run.missing:
                lines.append(f"- {group.label}: no finished epoch yet in {', '.join(run.missing)} of {run.directory}.")
        if len({run.epochs for run in group.runs}) > 1:
            lines.append(f"- {group.label}: the runs are not equally far; the curves go as far as all of them do.")
    return ["\n".join(lines)] if lines else []


def _links(group: Group, directory: Path) -> str:
    words = []
    for run in group.runs:
        path = link(run.directory, directory)
        words.append(f"[{'/'.join(run.directory.absolute().parts[-2:])}](<{path}>)")
    return f"- {group.label}: {', '.join(words)}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is the heading."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], f"| {' | '.join('---' for _ in cells[0])} |", *lines[1:]])
