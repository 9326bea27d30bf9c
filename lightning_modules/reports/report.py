"""Reports in Python: one function for runs, recipes, sweeps and lotteries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bnfree.errors import InputError
from bnfree.lightning_modules.experiments.sweep_file import SWEEP, SweepFile, label
from bnfree.lightning_modules.reports.lotteries import TOLERANCE, is_lottery_run
from bnfree.lightning_modules.reports.run_groups import compare_runs
from bnfree.lightning_modules.reports.run_report import RunsReport, report_runs
from bnfree.lightning_modules.reports.runs import has_trained, read_run

if TYPE_CHECKING:
    from bnfree.lightning_modules.reports.lottery_report import LotteryReport


@dataclass(frozen=True)
class ReportSettings:
    """What is reported, and how."""

    directories: str | Path | Sequence[str | Path]
    """Directories of runs or recipes, or the one of a sweep or a lottery."""
    output: str | Path | None = None
    """Where the report on runs goes; None: `report` in the directory of the run or the sweep, of several runs
    `runs/reports/<date>-<time>`. That of a lottery lies in its directory."""
    title: str | None = None
    """Heading of the report on runs; None: of what the runs are."""
    labels: Sequence[str] = ()
    """A name for each group of runs, in the order of the runs; empty: what differs between them."""
    tolerance: float = TOLERANCE
    """How far the mean accuracy of a matching ticket may lie below the dense one, as a share from 0 to 1."""


def report(settings: ReportSettings) -> RunsReport | LotteryReport:
    """Writes what runs, or a lottery, have measured: a text with tables, and figures.

    Runs whose configs differ in seeds alone are shown as one, mean and spread; the others side by side, labelled by
    what differs in their configs.

    Args:
        settings: what is reported, and how.

    Returns:
        The files, the rows of the table, and the groups with their accuracies as numbers.

    Raises:
        InputError: a directory that is neither, or has nothing to report yet; settings that do not go together; an
            output that holds another report. Nothing has been written then.

    Example:
        >>> from bnfree.lightning_modules import ReportSettings, report
        >>> found = report(ReportSettings(["runs/a", "runs/b"], title="Two seeds"))  # doctest: +SKIP
        >>> found.groups[0].accuracies()["test/acc"].mean  # doctest: +SKIP
        0.9208
    """
    given = [settings.directories] if isinstance(settings.directories, str | Path) else list(settings.directories)
    if not given:
        raise InputError("directories=[] names none; give directories of runs, or that of a lottery.")
    lotteries = [path for path in given if is_lottery_run(path)]
    sweeps = [path for path in map(Path, given) if (path / SWEEP).is_file()]
    if sweeps and len(given) > 1:
        raise InputError(f"{str(sweeps[0])!r} is a sweep, which has a report of its own; give it alone, or its runs.")
    if sweeps:
        return _report_sweep(sweeps[0], settings)
    if not lotteries:
        return report_runs(given, settings.output, settings.title, settings.labels)
    if len(given) > 1:
        raise InputError(f"{str(lotteries[0])!r} is a lottery run, which has a report of its own; give it alone.")
    for name in ("output", "title", "labels"):
        if getattr(settings, name):
            raise InputError(f"{name} goes with runs; {str(given[0])!r} is a lottery, whose report lies in it.")
    # Counting in networks needs torch, which a report on runs does without.
    from bnfree.lightning_modules.reports.lottery_report import report_lottery

    return report_lottery(given[0], settings.tolerance)


def _report_sweep(directory: Path, settings: ReportSettings) -> RunsReport:
    """The report on the runs of a sweep that have finished an epoch, labelled by what is varied."""
    planned = SweepFile.read(directory).runs
    trained = [name for name in planned if has_trained(directory / name)]
    if not trained:
        raise InputError(
            f"RUN={str(directory)!r} has no finished epoch in any of its runs; report it once it has trained."
        )
    runs = [directory / name for name in trained]
    groups = compare_runs([read_run(run) for run in runs]).groups
    varied = list(dict.fromkeys(label(planned[name]) for name in trained))
    # Where two values come to the same settings, say, the runs make other groups.
    labels = settings.labels or (varied if all(varied) and len(varied) == len(groups) else [])
    notes = [f"{name}: no finished epoch." for name in planned if name not in trained]
    title = settings.title or directory.absolute().name
    return report_runs(runs, settings.output, title, labels, directory, notes)
