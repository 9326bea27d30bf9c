"""Metrics as a CSV file that a resumed run continues."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import cast

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment


class ContinuedCSVLogger(CSVLogger):
    """Writes `metrics.csv` straight into a directory, after the rows of the run that is resumed.

    Lightning's logger deletes the file it finds in its directory.

    Args:
        directory: where `metrics.csv` goes.
        earlier: `metrics.csv` of the resumed run, possibly the same file; its rows are kept.
        first_step: rows of `earlier` from this step on are left out: the resumed run writes them again.
    """

    def __init__(self, directory: Path, earlier: Path | None = None, first_step: int = 0) -> None:
        super().__init__(directory, name="", version="")
        self._earlier, self._first_step = earlier, first_step

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer, which has taken over the earlier rows."""
        if self._experiment is None:
            rows = self._earlier_rows()
            directory = Path(self.save_dir)
            directory.mkdir(parents=True, exist_ok=True)
            writer = _Writer(str(directory))
            writer.write_rows(rows)
            self._experiment = writer
        return cast(ExperimentWriter, self._experiment)

    def _earlier_rows(self) -> list[dict[str, str]]:
        if self._earlier is None or not self._earlier.is_file():
            return []
        with self._earlier.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return [row for row in rows if not (row.get("step") or "").isdigit() or int(row["step"]) < self._first_step]


class _Writer(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        # The parent warns and deletes metrics.csv; here the directory is expected to hold files.
        return

    def write_rows(self, rows: list[dict[str, str]]) -> None:
        path = Path(self.metrics_file_path)
        if not rows:
            path.unlink(missing_ok=True)
            return
        self.metrics_keys = sorted(rows[0])
        complete = path.with_suffix(".new")
        with complete.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)
        complete.replace(path)
