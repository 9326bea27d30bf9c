"""Where callbacks write, and CSV files that are never half written."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from bnfree.files import whole_file


def run_directory(trainer: Trainer) -> Path:
    """Directory of the run, the same on every process; must be called on all of them.

    That of the first logger that writes into one directory for each run, which are TensorBoard's and the CSV logger's;
    loggers of services keep all their runs in one place, the working directory mostly. Without: `default_root_dir`.
    """
    kinds = (TensorBoardLogger, CSVLogger)
    directories = [logger.log_dir for logger in trainer.loggers if isinstance(logger, kinds)]
    return Path(trainer.strategy.broadcast(directories[0] if directories else trainer.default_root_dir))


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes a CSV file; a reader sees the old file or the new one.

    Args:
        path: the file; its directory is created.
        header: names of the columns.
        rows: one sequence of values for each row; None becomes an empty field.
    """
    with whole_file(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def as_text(value: str) -> str:
    """A name as spreadsheets show it: behind an apostrophe where they would take it for a formula.

    They do with what begins with `=`, `+`, `-`, `@`, a tab or a line's end (OWASP, "CSV injection"), and a folder that
    a stranger has named can begin with anything.
    """
    return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else value


def read_csv(path: Path, header: Sequence[str]) -> list[list[str]]:
    """Rows of a CSV file below its header; none if there is no such file or its columns are others."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    return rows[1:] if rows and rows[0] == list(header) else []
