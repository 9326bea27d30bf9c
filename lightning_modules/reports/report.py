"""Reports in Python: one function for runs, recipes and lotteries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bnfree.errors import InputError
from bnfree.lightning_modules.reports.lotteries import TOLERANCE, is_lottery_run
from bnfree.lightning_modules.reports.run_report import RunsReport, report_runs

if TYPE_CHECKING:
    from bnfree.lightning_modules.reports.lottery_report import LotteryReport


@dataclass(frozen=True)
class ReportSettings:
    """What is reported, and how."""

    directories: str | Path | Sequence[str | Path]
    """Directories of runs or recipes, or the one of a lottery."""
    output: str | Path | None = None
    """Where the report on runs goes; None: `report` in the run's directory, of several runs
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
