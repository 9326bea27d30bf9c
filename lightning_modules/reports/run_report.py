"""The report on runs: how it is made, its text, and where it goes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bnfree.errors import InputError
from bnfree.lightning_modules.reports.confusion import (
    MOST_DRAWN,
    Confusion,
    class_rows,
    draw_confusion,
    read_confusion,
)
from bnfree.lightning_modules.reports.documents import (
    REPORT,
    ReportResult,
    markdown_image,
    markdown_list,
    markdown_table,
    relative_link,
    rows_by_heading,
    write_files,
)
from bnfree.lightning_modules.reports.figures import save_png
from bnfree.lightning_modules.reports.run_figure import draw_runs
from bnfree.lightning_modules.reports.run_groups import ACCURACIES, Group, RunComparison, compare_runs, short_name
from bnfree.lightning_modules.reports.run_settings import written_value
from bnfree.lightning_modules.reports.runs import StageRun, read_run
from bnfree.lightning_modules.reports.summaries import MISSING, Summary, duration
from bnfree.lightning_modules.training.run_directory import choose_run_directory

FIGURE = "report.png"
CONFUSION = "confusion.png"
MARK = "<!-- bnfree report of "


@dataclass(frozen=True, kw_only=True)
class RunsReport(ReportResult):
    """The report on runs."""

    groups: tuple[Group, ...]
    """Runs that differ in their seeds alone, taken together; `accuracies` of each are numbers."""


def report_runs(
    runs: Sequence[str | Path],
    output: str | Path | None = None,
    title: str | None = None,
    labels: Sequence[str] = (),
    sweep: Path | None = None,
    notes: Sequence[str] = (),
) -> RunsReport:
    """Writes `report.md` and `report.png` of runs; see `report`.

    Args:
        runs: directories that `fit` or `run_recipe` has written.
        output: where the report goes; None: `report` in the run's directory, of several runs
            `runs/reports/<date>-<time>`.
        title: heading; None: of what the runs are.
        labels: a name for each group of runs, in the order of the runs; empty: what differs between them.
        sweep: directory of the sweep that the runs are of, in which their report goes by default.
        notes: lines below the table.

    Raises:
        InputError: a directory that is no run or has no finished epoch, a wrong number of labels, or an output that
            holds another report; nothing has been written then.
    """
    found = list({run.directory.resolve(): run for run in map(read_run, runs)}.values())
    comparison = compare_runs(found, labels)
    # More runs of a sweep make its report anew.
    reported = [sweep] if sweep is not None else [run.directory for run in found]
    directory = _output(output, reported)
    title = title or _title(comparison)
    # Of several runs there is no one matrix.
    confusion = read_confusion(found[0].stages[-1].directory) if len(found) == 1 else None
    files = {FIGURE: save_png(draw_runs(comparison.groups, title))}
    if confusion is not None and len(confusion.names) <= MOST_DRAWN:
        files[CONFUSION] = save_png(draw_confusion(confusion))
    mark = _mark([relative_link(path, directory) for path in reported])
    text = f"{runs_markdown(comparison, title, directory, confusion, notes)}\n\n{mark}\n".encode()
    write_files(directory, {**files, REPORT: text}, "output", "give another directory with --output.")
    return RunsReport(
        path=directory / REPORT,
        figures=tuple(directory / name for name in files),
        rows=rows_by_heading(result_rows(comparison.groups)),
        groups=tuple(comparison.groups),
    )


def runs_markdown(
    comparison: RunComparison,
    title: str,
    directory: Path,
    confusion: Confusion | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The text of `report.md`, without the mark at its end.

    Args:
        comparison: the groups of runs.
        title: the heading.
        directory: where the report goes; links to the runs are relative to it.
        confusion: of the one run's test.
        notes: lines below the table.
    """
    groups = comparison.groups
    parts = [f"# {title}", *markdown_image(title, FIGURE), markdown_table(result_rows(groups))]
    if any(len(group.runs) > 1 for group in groups):
        parts.append("Mean ± sample standard deviation over the seeds (the single values in the order of the seeds).")
    parts += markdown_list([*_notes(groups), *notes])
    if any(stage for group in groups for stage in group.stages):
        parts += ["## Stages", markdown_table(_stages(groups))]
    if comparison.settings:
        parts += ["## Settings that differ", markdown_table(_settings(comparison))]
    if confusion is not None:
        parts.append("## Classes")
        parts += markdown_image("Confusion matrix", CONFUSION) if len(confusion.names) <= MOST_DRAWN else []
        parts.append(markdown_table(class_rows(confusion)))
    parts += ["## Runs", *markdown_list([_links(group, directory) for group in groups])]
    return "\n\n".join(parts)


def _mark(runs: Sequence[str]) -> str:
    """A line that tells later reports which runs this one is of.

    Args:
        runs: directories of the runs, relative to the report's.
    """
    # Two dashes would end the comment.
    return f"{MARK}{json.dumps(sorted(runs)).replace('--', chr(92) + 'u002d-')} -->"


def result_rows(groups: list[Group]) -> list[list[str]]:
    """A heading and a row for each group: seeds, epochs, the accuracies that were measured, time."""
    found = [group.accuracies() for group in groups]
    columns = _measured(found)
    rows = [["runs", "seeds", "epochs", *(f"{heading} (%)" for heading in columns), "time per run"]]
    for group, values in zip(groups, found, strict=True):
        rows.append([group.label, seeds(group), epochs(group), *_percents(values, columns), time_per_run(group)])
    return rows


def _stages(groups: list[Group]) -> list[list[str]]:
    of_stages = [(group, i) for group in groups for i, stage in enumerate(group.stages) if stage]
    found = [group.accuracies(i) for group, i in of_stages]
    columns = _measured(found)
    rows = [["runs", "stage", "epochs", *(f"{heading} (%)" for heading in columns), "time per run"]]
    for (group, i), values in zip(of_stages, found, strict=True):
        cells = _percents(values, columns)
        rows.append([group.label, group.stages[i], epochs(group, [i]), *cells, time_per_run(group, i)])
    return rows


def _measured(found: list[dict[str, Summary]]) -> list[str]:
    return [heading for heading in ACCURACIES if any(heading in one for one in found)]


def _percents(values: dict[str, Summary], columns: list[str]) -> list[str]:
    return [values[heading].percent() if heading in values else MISSING for heading in columns]


def _settings(comparison: RunComparison) -> list[list[str]]:
    rows = [["setting", *(group.label for group in comparison.groups)]]
    for (stage, name), values in comparison.settings.items():
        cells = [f"`{written_value(value)}`" if value != MISSING else MISSING for value in values]
        rows.append([f"{stage}: `{name}`" if stage else f"`{name}`", *cells])
    return rows


def _notes(groups: list[Group]) -> list[str]:
    lines = []
    for group in groups:
        for run in group.runs:
            if run.missing:
                lines.append(f"{group.label}: no finished epoch yet in {', '.join(run.missing)} of {run.directory}.")
        if len({run.epochs for run in group.runs}) > 1:
            lines.append(f"{group.label}: the runs are not equally far; the curves go as far as all of them do.")
    return lines


def _links(group: Group, directory: Path) -> str:
    words = []
    for run in group.runs:
        path = relative_link(run.directory, directory)
        words.append(f"[{'/'.join(run.directory.absolute().parts[-2:])}](<{path}>)")
    return f"{group.label}: {', '.join(words)}"


def seeds(group: Group) -> str:
    """The seed of each run; with a seed of its own for the data, both."""
    words = []
    for run in group.runs:
        distinct = [str(seed) for seed in dict.fromkeys(run.seeds)]
        words.append("/".join(distinct) or MISSING)
    return ", ".join(words)


def epochs(group: Group, stages: list[int] | None = None) -> str:
    """Finished epochs of each stage, `of` those that the config asks for where they are fewer.

    Args:
        group: the runs.
        stages: numbers of the stages; None: all.
    """
    parts = []
    for index in range(len(group.stages)) if stages is None else stages:
        words = dict.fromkeys(map(_epochs_of_stage, group.of_stage(index)))
        parts.append(" / ".join(words))
    return " + ".join(parts)


def _epochs_of_stage(stage: StageRun) -> str:
    planned = stage.settings.get("trainer.max_epochs")
    fewer = isinstance(planned, int) and stage.epochs < planned
    return f"{stage.epochs} of {planned}" if fewer else str(stage.epochs)


def time_per_run(group: Group, stage: int | None = None) -> str:
    """Mean over the runs of the time that training and validation took, where TensorBoard's files tell it.

    Args:
        group: the runs.
        stage: number of one stage; None: all together.
    """
    totals = []
    for run in group.runs:
        seconds = [one.seconds for one in (run.stages if stage is None else [run.stages[stage]])]
        totals += [] if None in seconds else [math.fsum(one for one in seconds if one is not None)]
    return duration(math.fsum(totals) / len(totals)) if totals else MISSING


def _title(comparison: RunComparison) -> str:
    groups = comparison.groups
    number = sum(len(group.runs) for group in groups)
    if number == 1:
        return short_name(groups[0].runs[0])
    if len(groups) == 1:
        return f"{short_name(groups[0].runs[0])} and {number - 1} more seed{'s' * (number > 2)}"
    return f"{number} runs with {len(groups)} settings"


def _output(given: str | Path | None, runs: list[Path]) -> Path:
    """Where the report goes: a directory without a report, or with an earlier one of the same runs.

    Raises:
        InputError: the directory is taken.
    """
    if given is not None:
        directory = Path(given).expanduser()
    elif len(runs) == 1:
        directory = runs[0] / "report"
    else:
        return choose_run_directory(None, "reports", {})
    earlier = directory / REPORT
    taken = next((path for path in (earlier, directory / FIGURE) if path.exists()), None)
    if taken is None:
        return directory
    mine = _mark([relative_link(run, directory) for run in runs])
    if earlier.is_file() and mine in earlier.read_text(encoding="utf-8", errors="replace").splitlines():
        return directory
    raise InputError(
        f"output={str(directory)!r} holds {taken.name} of something else than these runs; give another directory with "
        "--output."
    )
