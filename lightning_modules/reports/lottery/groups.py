"""Levels that differ in their seed alone, taken together, and compared with the dense network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bnfree.lightning_modules.experiments.lottery.level_results import LevelResult, kind_order, kind_title
from bnfree.lightning_modules.reports.runs.summaries import Summary

DENSE = "dense"
TOLERANCE = 0.01
"""How far the mean accuracy of a matching level may lie below the dense one, unless said otherwise."""


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
    def density(self) -> float:
        """Kept share of the prunable weights, mean over the seeds."""
        return math.fsum(result.density for result in self.results) / len(self.results)

    @property
    def seconds(self) -> float:
        """How long the training took, mean over the seeds."""
        return math.fsum(result.seconds for result in self.results) / len(self.results)

    def accuracy(self, metric: Literal["test", "val", "best_val"]) -> Summary | None:
        """An accuracy over the seeds that have it; None if none has."""
        values = [value for value in (getattr(result, f"{metric}_acc") for result in self.results) if value is not None]
        return Summary(values) if values else None


@dataclass(frozen=True)
class Verdict:
    """How a group stands beside the same seeds of another, mostly the dense networks."""

    difference: Summary
    """Accuracy minus that of the reference, seed by seed."""
    matching: bool
    """Whether the mean difference is above minus the tolerance, or there."""


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


def judge(
    group: LevelGroup, reference: LevelGroup | None, metric: Literal["test", "val"], tolerance: float
) -> Verdict | None:
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


def percentage_points(share: float) -> str:
    """A difference of accuracies in words: `1 point`."""
    return f"{100 * share:g} point{'s' * (share != 0.01)}"


def dense_of(groups: Sequence[LevelGroup]) -> LevelGroup | None:
    """The group of the dense networks."""
    return next((group for group in groups if group.kind == DENSE), None)
