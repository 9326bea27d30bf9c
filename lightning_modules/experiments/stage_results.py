"""What a finished stage of a recipe has reached, and the mark that says it has finished."""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml

from bnfree.errors import InputError
from bnfree.lightning_modules.training.command_line import TrainingCLI
from bnfree.lightning_modules.training.run_directory import METRICS, is_child

FINISHED = "finished.yaml"


@dataclass(frozen=True)
class StageResult:
    """Accuracies are shares from 0 to 1."""

    epochs: int
    """Number of epochs trained."""
    last: float | None
    """Validation accuracy after the last epoch; None without validation."""
    best: float | None
    """Greatest validation accuracy of all epochs."""
    test: dict[str, float] = field(default_factory=dict)
    """What the test of the best checkpoint gave, if there was one."""

    def sentence(self) -> str:
        """The accuracies in words."""
        parts = [
            f"{name} {value:.4f}" for name, value in (("val/acc", self.last), ("best", self.best)) if value is not None
        ]
        parts += [f"{name} {value:.4f}" for name, value in self.test.items() if name.startswith("test/acc")]
        return ", ".join(parts) or f"{self.epochs} epochs"


def write_result(directory: Path, fit: TrainingCLI) -> None:
    """Marks a stage as finished, in the first of several processes only.

    Args:
        directory: run directory of the stage.
        fit: the training that has just ended.
    """
    if is_child() or fit.trainer.state.status != "finished" or not directory.is_dir():
        return
    metrics = directory / METRICS
    values: list[float] = []
    if metrics.is_file():
        with metrics.open() as file:
            values = [float(row["val/acc"]) for row in csv.DictReader(file) if row.get("val/acc")]
    result = StageResult(
        fit.trainer.current_epoch,
        values[-1] if values else None,
        max(values, default=None),
        {name: float(value) for name, value in fit.test_results.items()},
    )
    # Renamed into place: a mark is there as a whole or not at all.
    unfinished = directory / f".{FINISHED}"
    unfinished.write_text(yaml.safe_dump(asdict(result), sort_keys=False))
    unfinished.replace(directory / FINISHED)


def read_result(directory: Path) -> StageResult | None:
    """The result of a finished stage; None if it has not finished.

    Args:
        directory: run directory of the stage.

    Raises:
        InputError: the mark has been changed by hand into something else.
    """
    mark = directory / FINISHED
    if not mark.is_file():
        return None
    try:
        return StageResult(**yaml.safe_load(mark.read_text()))
    except (TypeError, yaml.YAMLError) as error:
        raise InputError(
            f"{str(mark)!r} cannot be read; remove it, and the stage goes on from its last checkpoint."
        ) from error


def results_table(directory: Path, names: list[str]) -> str:
    """One line for each stage, the intermediate accuracies above the final one.

    Args:
        directory: of the recipe.
        names: of all stages, in order.
    """
    rows = [["stage", "epochs", "val/acc", "best", "test/acc"]]
    for name in names:
        result = read_result(directory / name)
        if result is None:
            rows.append([name, "not finished", "", "", ""])
            continue
        accuracies = (result.last, result.best, result.test.get("test/acc"))
        rows.append([name, str(result.epochs), *(f"{value:.4f}" if value is not None else "-" for value in accuracies)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([f"Recipe directory: {directory}", *lines])
