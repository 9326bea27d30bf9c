"""What a finished stage of a recipe or run of a sweep has reached, and the mark that says it has finished."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml

from bnfree.errors import InputError
from bnfree.files import whole_file
from bnfree.lightning_modules.experiments.files import validation_accuracies
from bnfree.lightning_modules.training.fit import FitResult
from bnfree.lightning_modules.training.run_directory import CHECKPOINTS, is_child
from bnfree.text_tables import columns

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
    diverged: str = ""
    """What a run of a sweep has stopped at whose numbers were no longer finite."""
    directory: Path = field(default=Path(), compare=False)
    """Its run directory. Not written into the mark."""

    @property
    def last_checkpoint(self) -> Path:
        """The checkpoint after the last epoch."""
        return self.directory / CHECKPOINTS / "last.ckpt"

    @property
    def best_checkpoint(self) -> Path:
        """The checkpoint of the greatest validation accuracy; there is none without validation."""
        return self.directory / CHECKPOINTS / "best.ckpt"

    def sentence(self) -> str:
        """The accuracies in words."""
        if self.diverged:
            return f"it has diverged ({self.diverged.rstrip('.')})"
        parts = [
            f"{name} {value:.4f}" for name, value in (("val/acc", self.last), ("best", self.best)) if value is not None
        ]
        parts += [f"{name} {value:.4f}" for name, value in self.test.items() if name.startswith("test/acc")]
        return ", ".join(parts) or f"{self.epochs} epochs"


@dataclass(frozen=True)
class RecipeResult:
    """What `run_recipe` has trained."""

    directory: Path
    """Where the stages' run directories are."""
    stages: dict[str, StageResult | None]
    """All stages of the recipe by name, in order; None for one that has not finished."""

    def table(self) -> str:
        """One line for each stage, the intermediate accuracies above the final one."""
        rows = [["stage", "epochs", "val/acc", "best", "test/acc"]]
        for name, result in self.stages.items():
            if result is None:
                rows.append([name, "not finished", "", "", ""])
                continue
            accuracies = (result.last, result.best, result.test.get("test/acc"))
            numbers = (f"{value:.4f}" if value is not None else "-" for value in accuracies)
            rows.append([name, str(result.epochs), *numbers])
        return "\n".join([f"Recipe directory: {self.directory}", *columns(rows, left=len(rows[0]), width=None)])


def write_result(directory: Path, fit: FitResult) -> None:
    """Marks a run as finished, in the first of several processes only.

    Args:
        directory: its run directory.
        fit: the training that has just ended.
    """
    if is_child() or not fit.finished or not directory.is_dir():
        return
    values = validation_accuracies(directory)
    _write(
        directory,
        StageResult(fit.epochs, values[-1] if values else None, max(values, default=None), fit.test_metrics),
    )


def write_diverged(directory: Path, reason: str) -> None:
    """Marks a run as finished that would go the same way again, in the first of several processes only.

    Args:
        directory: its run directory.
        reason: what has happened.
    """
    if not is_child() and directory.is_dir():
        values = validation_accuracies(directory)
        last, best = (values[-1], max(values)) if values else (None, None)
        _write(directory, StageResult(len(values), last, best, diverged=reason))


def _write(directory: Path, result: StageResult) -> None:
    content = {name: value for name, value in asdict(result).items() if name != "directory"}
    if not result.diverged:
        del content["diverged"]
    with whole_file(directory / FINISHED) as unfinished:
        unfinished.write_text(yaml.safe_dump(content, sort_keys=False))


def read_result(directory: Path) -> StageResult | None:
    """The result of a finished run; None if it has not finished.

    Args:
        directory: its run directory.

    Raises:
        InputError: the mark has been changed by hand into something else.
    """
    mark = directory / FINISHED
    if not mark.is_file():
        return None
    try:
        return StageResult(**yaml.safe_load(mark.read_text()), directory=directory)
    except (TypeError, yaml.YAMLError) as error:
        raise InputError(
            f"{str(mark)!r} cannot be read; remove it, and the run goes on from its last checkpoint."
        ) from error
