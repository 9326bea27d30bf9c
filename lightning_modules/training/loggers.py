"""The loggers of a run: TensorBoard and CSV, of which a resumed run continues both, and the user's own beside them."""

from __future__ import annotations

import csv
import importlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from jsonargparse import Namespace
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment

from bnfree.errors import InputError
from bnfree.lightning_modules.compat import KeepingWriter, missing_package
from bnfree.lightning_modules.training.run_directory import METRICS, run_directory_of

SERVICES = ("wandb", "mlflow", "comet_ml", "litlogger", "neptune")
"""Packages of loggers whose refusals, such as of a missing key, are the user's to put right."""
RUN_DIR = "RUN_DIR"
"""Stands for the run directory at the beginning of an argument of a logger."""
LOGGER = "--trainer.logger"


def all_loggers(given: Any, defaults: Sequence[Logger]) -> list[Logger]:
    """The loggers of a run. The project's own come first, where Lightning looks for the directory of a run.

    Args:
        given: the Trainer's option `logger`, other than false: a logger, several, true or None.
        defaults: from `default_loggers`.
    """
    own = [given] if isinstance(given, Logger) else [] if given in (None, True) else list(given)
    return [*defaults, *own]


def check_packages(section: Any) -> None:
    """Refuses loggers whose package is not installed, before anything is built.

    Args:
        section: the Trainer's option `logger` as parsed.

    Raises:
        InputError: naming the package.
    """
    for path in _class_paths(section):
        module, _, name = path.rpartition(".")
        package = missing_package(getattr(importlib.import_module(module), name))
        if package is not None:
            raise InputError(f"trainer.logger={name} needs {package}, which is missing: pip install {package}.")


def _class_paths(section: Any) -> list[str]:
    sections = section if isinstance(section, list) else [section]
    return [s["class_path"] for s in sections if isinstance(s, Mapping | Namespace) and "class_path" in s]


def with_directories(words: Sequence[str]) -> list[str]:
    """Gives `CSVLogger` and `TensorBoardLogger`, which need a directory, the run's unless the words name one.

    Args:
        words: of a command line.
    """
    done: list[str] = []
    for i, word in enumerate(words):
        done.append(word)
        name, equals, value = word.partition("=")
        if not equals and i:
            name, value = words[i - 1], word
        needs_directory = value.rpartition(".")[2] in ("CSVLogger", "TensorBoardLogger")
        if name in (LOGGER, f"{LOGGER}+") and needs_directory:
            done.append(f"{LOGGER}.save_dir={RUN_DIR}")
    return done


def in_run_directory(section: Any, directory: Path | None) -> None:
    """Puts the run directory in place of `RUN_DIR` in the arguments of loggers.

    Args:
        section: the Trainer's option `logger` as parsed, changed in place.
        directory: the run directory; None: the working directory stands for it.
    """
    for one in section if isinstance(section, list) else [section]:
        arguments = one.get("init_args") if isinstance(one, Namespace) else None
        for name, value in vars(arguments or Namespace()).items():
            if isinstance(value, str) and Path(value).parts[:1] == (RUN_DIR,):
                setattr(arguments, name, str(Path(directory or Path.cwd(), *Path(value).parts[1:]).absolute()))


def open_wandb_run() -> Any:
    """The run of W&B that is open in this process; None without one."""
    return getattr(sys.modules.get("wandb"), "run", None)


def finish_wandb_runs(loggers: Iterable[Logger], before: Any) -> None:
    """Ends the run of W&B that a training has opened, which another training in this process would go on with.

    Args:
        loggers: of the training that has ended.
        before: the run that was open before it, which stays so.
    """
    for logger in loggers:
        run = logger._experiment if isinstance(logger, WandbLogger) else None
        if run is not None and run is not before:
            run.finish()


def default_loggers(directory: Path, resumed_from: str | None, checkpoint: dict[str, Any]) -> list[Logger]:
    """TensorBoard and CSV, both straight into the run directory.

    Args:
        directory: the run directory.
        resumed_from: checkpoint that the run goes on from, if any; the rows of its run come first in `metrics.csv`.
        checkpoint: what it holds.
    """
    earlier_run = run_directory_of(resumed_from) if resumed_from is not None else None
    earlier = earlier_run / METRICS if earlier_run is not None else None
    first_step = checkpoint.get("global_step", 0)
    loops = checkpoint.get("loops", {}).get("fit_loop", {})
    rows = loops.get("epoch_loop.state_dict", {}).get("rows")
    # A resumed run hides what TensorBoard has from beyond the checkpoint.
    purge: dict[str, Any] = {"purge_step": first_step} if first_step else {}
    return [
        TensorBoardLogger(directory, name="", version="", default_hp_metric=False, **purge),
        ContinuedCSVLogger(directory, earlier, first_step, rows),
    ]


class ContinuedCSVLogger(CSVLogger):
    """Writes `metrics.csv` straight into a directory, after the rows of the run that is resumed.

    Lightning's logger deletes the file it finds in its directory.

    Args:
        directory: where `metrics.csv` goes.
        earlier: `metrics.csv` of the resumed run, possibly the same file; its rows are kept.
        first_step: rows of `earlier` from this step on are left out: the resumed run writes them again.
        first_row: likewise, rows from this one on; None: the checkpoint does not say.
    """

    def __init__(
        self, directory: Path, earlier: Path | None = None, first_step: int = 0, first_row: int | None = None
    ) -> None:
        super().__init__(directory, name="", version="")
        self._earlier, self._first_step, self._first_row = earlier, first_step, first_row

    @property
    def rows(self) -> int:
        """How many rows the file has; 0 in all processes but the first, which have no file."""
        return cast(int, getattr(self.experiment, "rows", 0))

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
        lines = self._earlier.read_text().splitlines(keepends=True)
        # What a killed process has written last may have no end.
        rows = list(csv.DictReader(line for line in lines if line.endswith("\n")))
        rows = rows[: self._first_row]
        if self._first_row is not None:
            return rows
        return [row for row in rows if not (row.get("step") or "").isdigit() or int(row["step"]) < self._first_step]
