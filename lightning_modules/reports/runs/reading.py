"""What a run directory, or a recipe's directory with one run for each stage, says about a training."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bnfree.errors import InputError
from bnfree.lightning_modules.reports.runs.curves import METRICS_SHOWN, Table, curves_of, finished_epochs
from bnfree.lightning_modules.reports.runs.settings import flatten, seeds_in
from bnfree.lightning_modules.training.run_directory import CONFIG, METRICS, latest_config

RECIPE = "recipe.yaml"
WEIGHTS = "weight_dynamics.csv"


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
    directory = Path(path).expanduser()
    if not directory.is_dir():
        what = "is a file" if directory.exists() else "does not exist"
        raise InputError(f"RUN={str(path)!r} {what}; give the directory of a run, with its {CONFIG} and {METRICS}.")
    if (directory / RECIPE).is_file():
        return _read_recipe(directory)
    if not (directory / CONFIG).is_file():
        inside = sorted({file.parent for name in (CONFIG, RECIPE) for file in directory.glob(f"*/{name}")})
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


def _read_recipe(directory: Path) -> Run:
    content = _yaml(directory / RECIPE)
    stages = content.get("stages")
    if not isinstance(stages, dict) or not stages:
        raise InputError(
            f"{str(directory / RECIPE)!r} names no stages; give a directory that bnfree recipe has written."
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
    config = _yaml(latest_config(directory))
    test = {key: value for row in table for key, value in row.items() if key.startswith("test/")}
    gains = _gains(directory / WEIGHTS, epochs)
    seconds = _seconds(directory)
    settings = flatten(config)
    return StageRun(name, directory, settings, seeds_in(config), epochs, curves_of(table), test, gains, seconds)


def _yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{str(path)!r} cannot be read ({' '.join(str(error).split())}).") from error
    if not isinstance(content, dict):
        raise InputError(f"{str(path)!r} holds no settings; give a directory that bnfree has written.")
    return content


def _metrics(path: Path) -> Table:
    rows = []
    for row in _csv(path):
        # The last row of a run that is still going on may be there in part.
        try:
            rows.append({key: float(value) for key, value in row.items() if key and value})
        except ValueError as error:
            raise InputError(f"{str(path)!r} holds something other than numbers ({error}).") from error
    return rows


def _csv(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}).") from error


def _gains(path: Path, epochs: int) -> dict[int, dict[str, float]]:
    gains: dict[int, dict[str, float]] = {}
    if not path.is_file():
        return gains
    for row in _csv(path):
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
