"""What a run of `bnfree fit` has written into its `metrics.csv`."""

from __future__ import annotations

import csv
from pathlib import Path


def logged(run_directory: Path, metric: str) -> list[float]:
    """All values of a metric in the order in which they came, also those before a resumption; none without a file."""
    path = run_directory / "metrics.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [float(row[metric]) for row in csv.DictReader(file) if row.get(metric)]


def last_percent(run_directory: Path, metric: str) -> float | None:
    """The last value of an accuracy (percent); None if it has not come so far."""
    values = logged(run_directory, metric)
    return 100 * values[-1] if values else None
