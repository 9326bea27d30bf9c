"""The runs below a folder: what sets each apart, how far it is, and how it goes on."""

from __future__ import annotations

import shlex
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnfree.errors import InputError
from bnfree.lightning_modules.experiments.sweep_file import SWEEP
from bnfree.lightning_modules.reports.documents import existing_directory, read_csv_file, read_settings
from bnfree.lightning_modules.reports.run_settings import flat_settings, seeds_in, setting_labels
from bnfree.lightning_modules.reports.runs import RECIPE_FILE, Table, finished_epochs
from bnfree.lightning_modules.training.run_directory import (
    CHECKPOINTS,
    CONFIG,
    FINISHED,
    METRICS,
    is_in_use,
    latest_config,
)

STATES = ("running", "finished", "interrupted")


@dataclass(frozen=True)
class ListedRun:
    """One run of `bnfree fit`, also one that is a stage of a recipe or a level of a lottery."""

    directory: Path
    """Its run directory."""
    state: str
    """`running`: a command holds the directory; `finished`: it has come to its end; `interrupted`: neither."""
    epochs: int
    """Epochs that have been finished."""
    max_epochs: int | None
    """Epochs that its config asks for; None where it names none."""
    best: float | None
    """Greatest validation accuracy, from 0 to 1; None without validation."""
    test: float | None
    """Test accuracy; None without a test."""
    difference: str
    """The settings that set it apart from the other runs beside it, with as few words as possible."""
    command: str
    """What goes on with it: resumes an interrupted run, tests a finished one; empty while it runs."""


def list_runs(folder: str | Path = "runs") -> list[ListedRun]:
    """The runs below a folder, ordered by their paths.

    Args:
        folder: where to look, at any depth.

    Raises:
        InputError: there is no such folder, or no run in it.
    """
    place = existing_directory(folder, "FOLDER", "give the folder that runs go into.")
    directories = sorted(path.parent for path in place.rglob(CONFIG) if (path.parent / CONFIG).is_file())
    if not directories:
        raise InputError(f"FOLDER={str(folder)!r} holds no run; give the folder that runs go into, such as runs.")
    configs = {directory: _config(directory) for directory in directories}
    beside: dict[Path, list[Path]] = defaultdict(list)
    for directory in directories:
        beside[directory.parent].append(directory)
    differences: dict[Path, str] = {}
    for group in beside.values():
        labels = setting_labels([{("", k): v for k, v in flat_settings(configs[d]).items()} for d in group])
        for directory, label in zip(group, labels, strict=True):
            seeds = dict.fromkeys(str(seed) for seed in seeds_in(configs[directory]))
            several = len({seeds_in(configs[other]) for other in group}) > 1
            differences[directory] = ", ".join(
                [*([label] if label else []), *(["seed " + "/".join(seeds)] if several else [])]
            )
    return [_listed(directory, configs[directory], differences[directory]) for directory in directories]


def _config(directory: Path) -> dict[str, Any]:
    try:
        content = read_settings(latest_config(directory))
    except InputError:
        # What a killed process has left is a run all the same.
        return {}
    return content if isinstance(content, dict) else {}


def _listed(directory: Path, config: dict[str, Any], difference: str) -> ListedRun:
    rows = _rows(directory / METRICS)
    epochs = finished_epochs(rows)
    max_epochs = (config.get("trainer") or {}).get("max_epochs")
    accuracies = [row["val/acc"] for row in rows if "val/acc" in row]
    tests = [row["test/acc"] for row in rows if "test/acc" in row]
    if is_in_use(directory):
        state = "running"
    else:
        # Runs of earlier versions have left no mark.
        reached = isinstance(max_epochs, int) and 0 < max_epochs <= epochs
        state = "finished" if (directory / FINISHED).is_file() or reached else "interrupted"
    return ListedRun(
        directory=directory,
        state=state,
        epochs=epochs,
        max_epochs=max_epochs if isinstance(max_epochs, int) and max_epochs > 0 else None,
        best=max(accuracies, default=None),
        test=tests[-1] if tests else None,
        difference=difference,
        command=_command(directory, state),
    )


def _rows(path: Path) -> Table:
    rows = []
    try:
        lines = read_csv_file(path) if path.is_file() else []
    except InputError:
        lines = []
    for line in lines:
        # The last line of a run that is still going on may be there in part.
        with suppress(ValueError):
            rows.append({key: float(value) for key, value in line.items() if key and value})
    return rows


def _command(directory: Path, state: str) -> str:
    last, best = (directory / CHECKPOINTS / f"{name}.ckpt" for name in ("last", "best"))
    for name, file in (("recipe", RECIPE_FILE), ("lottery", "lottery.yaml"), ("sweep", SWEEP)):
        if state == "interrupted" and any((parent / file).is_file() for parent in directory.parents):
            return f"the bnfree {name} command that started it, again"
    if state == "interrupted" and last.is_file():
        return shlex.join(["bnfree", "fit", f"--run_dir={directory}", "--ckpt_path=last"])
    if state == "interrupted":
        return shlex.join(["bnfree", "fit", f"--config={latest_config(directory)}"])
    kept = best if best.is_file() else last
    return shlex.join(["bnfree", "test", f"--ckpt_path={kept}"]) if state == "finished" and kept.is_file() else ""
