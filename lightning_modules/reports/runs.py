"""What a run directory, or a recipe's directory with one run for each stage, says about a training."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bnfree.errors import InputError
from bnfree.lightning_modules.reports.documents import existing_directory, read_csv_file, read_settings
from bnfree.lightning_modules.reports.run_settings import flat_settings, seeds_in
from bnfree.lightning_modules.training.run_directory import CONFIG, METRICS, latest_config

RECIPE_FILE = "recipe.yaml"
WEIGHTS = "weight_dynamics.csv"

Row = dict[str, float]
Table = list[Row]

ACCURACIES_AND_LOSSES = ("train/acc", "val/acc", "train/loss", "val/loss")
CLIPPED = "agc/clipped_fraction"
FLIPPED = "signs/flipped"
LEARNING_RATE = "learning rate"
METRICS_SHOWN = (*ACCURACIES_AND_LOSSES, CLIPPED, FLIPPED)


@dataclass(frozen=True)
class StageRun:
    """One training: an ordinary run, or one stage of a recipe."""

    name: str
    """Name of the stage; empty in an ordinary run."""
    directory: Path
    """Its run directory."""
    settings: dict[str, Any]
    """Settings of its config by dotted name, without seeds and places."""
    seeds: tuple[Any, ...]
    """Seed of the training, and of the data's order where it has one."""
    epochs: int
    """Epochs that have been finished."""
    curves: dict[str, dict[float, float]]
    """For each metric, its values by the number of epochs trained until then."""
    test: dict[str, float]
    """What a test after the training gave."""
    gains: dict[int, dict[str, float]] = field(default_factory=dict)
    """Mean |gain| by epoch (from 0) and layer."""
    seconds: float | None = None
    """Time that the training took, as far as TensorBoard's files tell."""


@dataclass(frozen=True)
class Run:
    """A run directory, or a recipe's directory."""

    directory: Path
    """As the user has given it."""
    stages: list[StageRun]
    """One for an ordinary run; of a recipe those that have finished an epoch."""
    missing: list[str] = field(default_factory=list)
    """Stages of the recipe that have not."""

    @property
    def seeds(self) -> tuple[Any, ...]:
        """The seeds of all stages."""
        return tuple(seed for stage in self.stages for seed in stage.seeds)

    @property
    def epochs(self) -> int:
        """Epochs of all stages."""
        return sum(stage.epochs for stage in self.stages)


def read_run(path: str | Path) -> Run:
    """Reads a directory that `bnfree fit` or `bnfree recipe` has written.

    Args:
        path: the directory.

    Raises:
        InputError: another kind of directory, or one in which no epoch has been finished.
    """
    remedy = f"give the directory of a run, with its {CONFIG} and {METRICS}."
    directory = existing_directory(path, "RUN", remedy)
    if (directory / RECIPE_FILE).is_file():
        return _read_recipe(directory)
    if not (directory / CONFIG).is_file():
        inside = sorted({file.parent for name in (CONFIG, RECIPE_FILE) for file in directory.glob(f"*/{name}")})
        remedy = (
            f"it holds runs, such as {str(inside[0])!r}." if inside else "give a directory of bnfree fit or recipe."
        )
        raise InputError(f"RUN={str(path)!r} is no run directory, for it has no {CONFIG}; {remedy}")
    stage = _read_stage("", directory)
    if stage is None:
        raise InputError(f"RUN={str(path)!r} has no finished epoch in its {METRICS}; report it once it has trained.")
    if not stage.curves:
        raise InputError(
            f"RUN={str(path)!r} has logged nothing that a report shows; log one of {', '.join(METRICS_SHOWN)}."
        )
    return Run(directory, [stage])


def has_trained(directory: Path) -> bool:
    """Whether a run directory has a finished epoch to report."""
    files = directory / CONFIG, directory / METRICS
    return all(file.is_file() for file in files) and finished_epochs(_metrics(directory / METRICS)) > 0


def _read_recipe(directory: Path) -> Run:
    content = read_settings(directory / RECIPE_FILE)
    stages = content.get("stages")
    if not isinstance(stages, dict) or not stages:
        raise InputError(
            f"{str(directory / RECIPE_FILE)!r} names no stages; give a directory that bnfree recipe has written."
        )
    found = {str(name): _read_stage(str(name), directory / str(name)) for name in stages}
    present = [stage for stage in found.values() if stage is not None]
    if not present:
        raise InputError(
            f"RUN={str(directory)!r} has no finished epoch in any of its stages ({', '.join(found)}); report it once "
            "it has trained."
        )
    return Run(directory, present, [name for name, stage in found.items() if stage is None])


def _read_stage(name: str, directory: Path) -> StageRun | None:
    metrics = directory / METRICS
    if not metrics.is_file() or not (directory / CONFIG).is_file():
        return None
    table = _metrics(metrics)
    epochs = finished_epochs(table)
    if not epochs:
        return None
    config = read_settings(latest_config(directory))
    test = {key: value for row in table for key, value in row.items() if key.startswith("test/")}
    gains = _gains(directory / WEIGHTS, epochs)
    seconds = _seconds(directory)
    settings = flat_settings(config)
    return StageRun(name, directory, settings, seeds_in(config), epochs, curves_of(table), test, gains, seconds)


def _metrics(path: Path) -> Table:
    rows = []
    for row in read_csv_file(path):
        # The last row of a run that is still going on may be there in part.
        try:
            rows.append({key: float(value) for key, value in row.items() if key and value})
        except ValueError as error:
            raise InputError(f"{str(path)!r} holds something other than numbers ({error}).") from error
    return rows


def _gains(path: Path, epochs: int) -> dict[int, dict[str, float]]:
    gains: dict[int, dict[str, float]] = {}
    if not path.is_file():
        return gains
    for row in read_csv_file(path):
        try:
            if row["gain"] and int(row["epoch"]) < epochs:
                gains.setdefault(int(row["epoch"]), {})[row["layer"]] = float(row["gain"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{str(path)!r} is not what bnfree.callbacks.WeightDynamics writes ({error}).") from error
    return gains


def _seconds(directory: Path) -> float | None:
    """Time between the first and the last event, summed over the files: a resumed run writes one for each start."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    total = 0.0
    for path in directory.glob("events.out.tfevents.*"):
        times = [event.wall_time for event in LegacyEventFileLoader(str(path)).Load()]
        total += max(times, default=0.0) - min(times, default=0.0)
    return total if total > 0 and math.isfinite(total) else None


def finished_epochs(table: Table) -> int:
    """How many epochs have been trained to their end."""
    return max(_ends(table), default=-1) + 1


def curves_of(table: Table) -> dict[str, dict[float, float]]:
    """The curves that a table holds: from a metric to its values by the number of epochs trained until then.

    Accuracies, losses and the learning rate stand where they were measured (a training metric, which is a mean over an
    epoch, at its end). The clipped fraction is logged every few steps; its curve is the mean over each epoch. Of
    several parameter groups the greatest learning rate is taken.

    Args:
        table: rows of `metrics.csv`, without their empty cells.
    """
    marks = _marks(table)
    if not marks:
        return {}
    curves: dict[str, dict[float, float]] = {}
    clipped: dict[float, list[float]] = {}
    for row in table:
        position = _position(row.get("step", math.inf), marks)
        # What an interrupted epoch has left would be a mean over a part of it.
        if position > marks[-1][1]:
            continue
        for name in (*ACCURACIES_AND_LOSSES, FLIPPED):
            if name in row:
                curves.setdefault(name, {})[position] = row[name]
        rates = [value for name, value in row.items() if name.startswith("lr-")]
        if rates:
            curves.setdefault(LEARNING_RATE, {})[position] = max(rates)
        if CLIPPED in row:
            clipped.setdefault(float(math.ceil(position)), []).append(row[CLIPPED])
    if clipped:
        curves[CLIPPED] = {epoch: math.fsum(values) / len(values) for epoch, values in clipped.items()}
    return {name: dict(sorted(curve.items())) for name, curve in curves.items()}


def _ends(table: Table) -> dict[int, float]:
    """The last step of each finished epoch; the training's own metrics say it best."""
    for part in ("train/", "val/"):
        ends: dict[int, float] = {}
        for row in table:
            if "epoch" in row and "step" in row and any(name.startswith(part) for name in row):
                ends[int(row["epoch"])] = max(row["step"], ends.get(int(row["epoch"]), 0))
        if ends:
            return ends
    return {}


def _marks(table: Table) -> list[tuple[float, int]]:
    """Pairs (step, number of epochs after it), from the start; empty without a finished epoch."""
    ends = _ends(table)
    return [(-1.0, 0), *((end, epoch + 1) for epoch, end in sorted(ends.items()))] if ends else []


def _position(step: float, marks: list[tuple[float, int]]) -> float:
    """The number of epochs after a step, rounded so that equal runs have equal positions; infinite after the last."""
    index = bisect_left(marks, (step, 0))
    if index == 0 or index == len(marks):
        return 0.0 if index == 0 else math.inf
    (earlier, first), (later, last) = marks[index - 1], marks[index]
    return round(first + (last - first) * (step - earlier) / (later - earlier), 6)
