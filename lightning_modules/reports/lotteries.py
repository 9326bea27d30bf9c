"""What the directory of a lottery run holds: finished levels, seeds taken together, and how they stand to dense."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bnfree.errors import InputError
from bnfree.lightning_modules.experiments.lottery.level_results import (
    FINISHED,
    LevelResult,
    is_control,
    kind_order,
    kind_title,
    read_levels,
)
from bnfree.lightning_modules.reports.documents import existing_directory, read_settings
from bnfree.lightning_modules.reports.summaries import Summary, summarized

LOTTERY_FILE = "lottery.yaml"
WRITER = "bnfree lottery run"
TOLERANCE = 0.01
"""How far the mean accuracy of a matching level may lie below the dense one, unless said otherwise."""
DENSE = "dense"
Metric = Literal["test", "val"]


def is_lottery_run(path: str | Path) -> bool:
    """Whether a directory is one of a lottery run, finished or not."""
    directory = Path(path).expanduser()
    return (directory / LOTTERY_FILE).is_file() or any(directory.glob("seed_*/level_*"))


@dataclass(frozen=True)
class LotteryRun:
    """A lottery run, as far as it has come."""

    directory: Path
    """As the user has given it."""
    levels: list[LevelResult]
    """The finished levels, controls included; at least one."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Content of `lottery.yaml`; empty without it."""
    unfinished: list[str] = field(default_factory=list)
    """Folders of levels that have begun and not finished, relative to the directory."""

    @property
    def metric(self) -> Metric:
        """The accuracy to compare levels by: of the test where all levels have one, otherwise the last validation's."""
        return "test" if all(level.test_acc is not None for level in self.levels) else "val"

    @property
    def title(self) -> str:
        """Name of the run."""
        return self.directory.resolve().name


def read_lottery_run(path: str | Path) -> LotteryRun:
    """Reads the directory of a lottery run.

    Args:
        path: the directory, which `bnfree lottery run` has written.

    Raises:
        InputError: another kind of directory, or one without a finished level.
    """
    directory = existing_directory(path, "DIR", f"give the directory of a {WRITER}.")
    levels = read_levels(directory)
    if not levels and not (directory / LOTTERY_FILE).is_file():
        above = next((parent for parent in directory.resolve().parents if (parent / LOTTERY_FILE).is_file()), None)
        inside = sorted(directory.glob(f"*/{LOTTERY_FILE}"))
        remedy = f"give a directory that {WRITER} has written."
        if above is not None:
            remedy = f"it lies in one, {str(above)!r}."
        elif inside:
            remedy = f"it holds some, such as {str(inside[0].parent)!r}."
        raise InputError(f"DIR={str(path)!r} is no lottery run, for it has neither {LOTTERY_FILE} nor levels; {remedy}")
    if not levels:
        raise InputError(f"DIR={str(path)!r} has no finished level yet; report it once one has trained.")
    folders = [f for f in directory.glob("seed_*/**/level_*") if f.is_dir() and re.fullmatch(r"level_\d+", f.name)]
    unfinished = [f.relative_to(directory).as_posix() for f in sorted(folders) if not (f / FINISHED).is_file()]
    settings = read_settings(directory / LOTTERY_FILE, WRITER) if (directory / LOTTERY_FILE).is_file() else {}
    return LotteryRun(directory, levels, settings, unfinished)


@dataclass(frozen=True)
class LevelGroup:
    """One kind of training at one level, over all seeds that have finished it."""

    kind: str
    """What has been trained, see `kind_title`."""
    level: int
    """Number of the level."""
    results: tuple[LevelResult, ...]
    """In the order of the seeds; at least one."""

    @property
    def name(self) -> str:
        """The kind in words."""
        return kind_title(self.kind)

    @property
    def is_control(self) -> bool:
        """Whether it checks a ticket."""
        return is_control(self.kind)

    @property
    def density(self) -> float:
        """Kept share of the prunable weights, mean over the seeds."""
        return math.fsum(result.density for result in self.results) / len(self.results)

    @property
    def seconds(self) -> float:
        """How long the training took, mean over the seeds."""
        return math.fsum(result.seconds for result in self.results) / len(self.results)

    def accuracy(self, metric: Literal["test", "val", "best_val"]) -> Summary | None:
        """An accuracy over the seeds that have it; None if none has."""
        return summarized([getattr(result, f"{metric}_acc") for result in self.results])


@dataclass(frozen=True)
class Verdict:
    """How a group stands beside the same seeds of another, mostly the dense networks."""

    difference: Summary
    """Accuracy minus that of the reference, seed by seed."""
    matching: bool
    """Whether the mean difference is above minus the tolerance, or there."""

    @property
    def word(self) -> str:
        """The verdict in one word."""
        return "matching" if self.matching else "below"


def group_levels(levels: Sequence[LevelResult]) -> list[LevelGroup]:
    """One group for each kind and level, by level and within it in the order of `kind_order`."""
    found: dict[tuple[int, str], list[LevelResult]] = {}
    for result in levels:
        found.setdefault((result.level, result.kind), []).append(result)
    order = sorted(found, key=lambda key: (key[0], kind_order(key[1])))
    return [
        LevelGroup(kind, level, tuple(sorted(found[level, kind], key=lambda result: result.seed)))
        for level, kind in order
    ]


def judge(group: LevelGroup, reference: LevelGroup | None, metric: Metric, tolerance: float) -> Verdict | None:
    """Compares a group with another one, seed by seed, so that a seed that is missing in one of them tips nothing.

    Args:
        group: the group.
        reference: mostly the dense networks; None if there are none yet.
        metric: which accuracy.
        tolerance: how far the mean may lie below that of the reference, as a share from 0 to 1.

    Returns:
        None if no seed has both, or the group is the reference itself.
    """
    if reference is None or group is reference:
        return None
    of_reference = {result.seed: getattr(result, f"{metric}_acc") for result in reference.results}
    pairs = [(getattr(result, f"{metric}_acc"), of_reference.get(result.seed)) for result in group.results]
    differences = [value - other for value, other in pairs if value is not None and other is not None]
    if not differences:
        return None
    summary = Summary(differences)
    # Accuracies are counts over images: what is exactly at the tolerance must not fail by the last bit.
    return Verdict(summary, summary.mean >= -tolerance - 1e-9)


def dense_of(groups: Sequence[LevelGroup]) -> LevelGroup | None:
    """The group of the dense networks."""
    return next((group for group in groups if group.kind == DENSE), None)
