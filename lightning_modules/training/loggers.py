"""TensorBoard and CSV, of which a resumed run continues both."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment

from bnfree.lightning_modules.compat import KeepingWriter
from bnfree.lightning_modules.training.run_directory import METRICS, run_directory_of


def default_loggers(directory: Path, resumed_from: str | None, first_step: int) -> list[Logger]:
    """TensorBoard and CSV, both straight into the run directory.

    Args:
        directory: the run directory.
        resumed_from: checkpoint that the run goes on from, if any; the rows of its run come first in `metrics.csv`.
        first_step: global step of that checkpoint.
    """
    earlier_run = run_directory_of(resumed_from) if resumed_from is not None else None
    earlier = earlier_run / METRICS if earlier_run is not None else None
    # A resumed run hides what TensorBoard has from beyond the checkpoint.
    purge: dict[str, Any] = {"purge_step": first_step} if first_step else {}
    return [
        TensorBoardLogger(directory, name="", version="", default_hp_metric=False, **purge),
        ContinuedCSVLogger(directory, earlier, first_step),
    ]


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
            writer = KeepingWriter(str(directory))
            writer.start_with(rows)
            self._experiment = writer
        return cast(ExperimentWriter, self._experiment)

    def _earlier_rows(self) -> list[dict[str, str]]:
        if self._earlier is None or not self._earlier.is_file():
            return []
        with self._earlier.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return [row for row in rows if not (row.get("step") or "").isdigit() or int(row["step"]) < self._first_step]
