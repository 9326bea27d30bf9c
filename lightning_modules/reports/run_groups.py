"""Runs that differ in their seeds alone, taken together."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from bnfree.errors import InputError
from bnfree.lightning_modules.reports.run_settings import (
    Key,
    differing_settings,
    join_stages,
    setting_labels,
    shared_names,
)
from bnfree.lightning_modules.reports.runs import Run, StageRun
from bnfree.lightning_modules.reports.summaries import Summary, summarized

Band = dict[float, tuple[float, float, float]]


def _best(stage: StageRun, metric: str) -> float | None:
    values = [value for value in stage.curves.get(metric, {}).values() if math.isfinite(value)]
    return max(values, default=None)


def _last(stage: StageRun, metric: str) -> float | None:
    return next(reversed(stage.curves.get(metric, {}).values()), None)


# Heading of the column, and where its value comes from.
ACCURACIES: dict[str, Callable[[StageRun], float | None]] = {
    "best val/acc": lambda stage: _best(stage, "val/acc"),
    "last val/acc": lambda stage: _last(stage, "val/acc"),
    "test/acc": lambda stage: stage.test.get("test/acc"),
    "test/acc5": lambda stage: stage.test.get("test/acc5"),
    "train/acc": lambda stage: _last(stage, "train/acc"),
}


@dataclass(frozen=True)
class Group:
    """Runs with the same settings and different seeds, in the order of their seeds."""

    label: str
    """What sets it apart from the other groups, in few words."""
    runs: list[Run]
    """At least one."""

    @property
    def stages(self) -> list[str]:
        """Names of the stages; one empty name for ordinary runs."""
        return [stage.name for stage in self.runs[0].stages]

    def of_stage(self, index: int) -> list[StageRun]:
        """One stage of all runs; negative numbers count from the end."""
        return [run.stages[index] for run in self.runs]

    def borders(self) -> list[int]:
        """The number of epochs after each stage."""
        ends = [max(stage.epochs for stage in self.of_stage(i)) for i in range(len(self.stages))]
        return [sum(ends[: i + 1]) for i in range(len(ends))]

    def accuracies(self, stage: int = -1) -> dict[str, Summary]:
        """The accuracies (shares from 0 to 1) that the runs have, by heading: `best val/acc`, `test/acc` and so on.

        Args:
            stage: number of the stage; negative numbers count from the end.
        """
        found = {heading: summarized([of(one) for one in self.of_stage(stage)]) for heading, of in ACCURACIES.items()}
        return {heading: summary for heading, summary in found.items() if summary is not None}

    def bands(self, metric: str) -> list[Band]:
        """Mean, least and greatest value over the seeds, for each stage that has the metric in all runs.

        Args:
            metric: one of the curves of a `StageRun`; the stages follow each other on one axis of epochs.
        """
        bands = []
        for index, start in enumerate([0, *self.borders()[:-1]]):
            stages = self.of_stage(index)
            band = mean_curve(stage.curves.get(metric, {}) for stage in stages)
            if band:
                bands.append({start + x: values for x, values in band.items()})
        return bands


@dataclass(frozen=True)
class RunComparison:
    """All groups, and the settings in which they differ."""

    groups: list[Group]
    """In the order of the command line."""
    settings: dict[Key, list[object]]
    """For each setting that differs, the value in each group."""


def compare_runs(runs: Sequence[Run], given_labels: Sequence[str] = ()) -> RunComparison:
    """Groups runs; a directory that is given twice counts once.

    Runs belong together when their settings are equal and their seeds all different. Where a seed comes twice, nothing
    in the configs tells what the runs have in common, and each stays on its own.

    Args:
        runs: what the directories hold.
        given_labels: a label for each group, in place of what differs; empty: none.

    Raises:
        InputError: a number of labels other than that of the groups.
    """
    runs = list({run.directory.resolve(): run for run in runs}.values())
    sections = [[(stage.name, stage.settings) for stage in run.stages] for run in runs]
    shared = shared_names(sections)
    settings = [join_stages(stages, shared) for stages in sections]
    if any(len(run.stages) > 1 or run.stages[0].name for run in runs):
        for run, joined in zip(runs, settings, strict=True):
            joined["", "stages"] = tuple(stage.name for stage in run.stages) if run.stages[0].name else "one"
    together: dict[str, list[int]] = {}
    for index, joined in enumerate(settings):
        together.setdefault(repr(sorted(joined.items(), key=repr)), []).append(index)
    members: list[list[int]] = []
    for indices in together.values():
        different = len({runs[i].seeds for i in indices}) == len(indices)
        members += [sorted(indices, key=lambda i: _seed_order(runs[i]))] if different else [[i] for i in indices]
    members.sort(key=min)
    of_groups = [settings[indices[0]] for indices in members]
    names = _labels(of_groups, [[runs[i] for i in indices] for indices in members])
    if given_labels:
        if len(given_labels) != len(members):
            raise InputError(
                f"label is given {_times(len(given_labels))}, but the runs make {len(members)} "
                f"group{'s' * (len(members) > 1)} ({', '.join(names)}); give one --label for each, in this order."
            )
        names = list(given_labels)
    groups = [Group(name, [runs[i] for i in indices]) for name, indices in zip(names, members, strict=True)]
    return RunComparison(groups, differing_settings(of_groups))


def mean_curve(curves: Iterable[dict[float, float]]) -> dict[float, tuple[float, float, float]]:
    """Mean, least and greatest value of several curves, where all of them have one."""
    several = list(curves)
    common = [x for x in several[0] if all(x in curve for curve in several)] if several else []
    return {
        x: (math.fsum(values) / len(values), min(values), max(values))
        for x in common
        for values in ([curve[x] for curve in several],)
    }


def _times(number: int) -> str:
    return {1: "once", 2: "twice"}.get(number, f"{number} times")


def _seed_order(run: Run) -> tuple[object, ...]:
    return tuple((0, seed, "") if isinstance(seed, int) else (1, 0, str(seed)) for seed in run.seeds)


def _labels(settings: list[dict[Key, object]], members: list[list[Run]]) -> list[str]:
    names = setting_labels(settings)
    if len(members) == 1 and len(members[0]) > 1:
        return [f"{len(members[0])} seeds"]
    firsts = [runs[0] for runs in members]
    # Where the settings do not tell them apart, the directories do.
    return [
        name if name and names.count(name) == 1 else ", ".join(filter(None, [name, short_name(run, firsts)]))
        for name, run in zip(names, firsts, strict=True)
    ]


def short_name(run: Run, among: Sequence[Run] = ()) -> str:
    """The last parts of a run's directory: as many as it takes to tell it from others, and more than the date."""
    parts = run.directory.absolute().parts
    others = [other.directory.absolute().parts for other in among if other.directory != run.directory]
    length = 2 if re.fullmatch(r"\d{8}-\d{6}(-\d+)?", parts[-1]) else 1
    while length < len(parts) and any(other[-length:] == parts[-length:] for other in others):
        length += 1
    return "/".join(parts[-length:])
