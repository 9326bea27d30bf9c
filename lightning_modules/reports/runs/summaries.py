"""The figures of a group: means with the spread over its seeds."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from bnfree.lightning_modules.reports.runs.groups import Group
from bnfree.lightning_modules.reports.runs.reading import StageRun

MISSING = "—"


@dataclass(frozen=True)
class Summary:
    """One figure of several runs."""

    values: list[float]
    """Of each run that has it, in the order of the seeds; at least one."""

    @property
    def mean(self) -> float:
        """Arithmetic mean."""
        return math.fsum(self.values) / len(self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation (n - 1); None with one value or one that is not finite."""
        several = len(self.values) > 1 and all(map(math.isfinite, self.values))
        return statistics.stdev(self.values) if several else None

    def percent(self, singly: bool = True) -> str:
        """Shares in percent: mean ± standard deviation (each value), or the one value.

        Args:
            singly: with the value of each run.
        """
        if len(self.values) == 1:
            return f"{100 * self.mean:.2f}"
        spread = f" ± {100 * self.std:.2f}" if self.std is not None else ""
        values = f" ({', '.join(f'{100 * value:.2f}' for value in self.values)})" if singly else ""
        return f"{100 * self.mean:.2f}{spread}{values}"


def best(stage: StageRun, metric: str) -> float | None:
    """The greatest value of all epochs."""
    values = [value for value in stage.curves.get(metric, {}).values() if math.isfinite(value)]
    return max(values, default=None)


def last(stage: StageRun, metric: str) -> float | None:
    """The value after the last epoch."""
    return next(reversed(stage.curves.get(metric, {}).values()), None)


# Heading of the column, and where its value comes from.
ACCURACIES = {
    "best val/acc": lambda stage: best(stage, "val/acc"),
    "last val/acc": lambda stage: last(stage, "val/acc"),
    "test/acc": lambda stage: stage.test.get("test/acc"),
    "test/acc5": lambda stage: stage.test.get("test/acc5"),
    "train/acc": lambda stage: last(stage, "train/acc"),
}


def accuracies(group: Group, stage: int = -1) -> dict[str, Summary]:
    """The accuracies (shares from 0 to 1) that the runs of a group have, by heading.

    Args:
        group: the runs.
        stage: number of the stage; negative numbers count from the end.
    """
    found = {}
    for heading, value_of in ACCURACIES.items():
        values = [value for value in map(value_of, group.of_stage(stage)) if value is not None]
        if values:
            found[heading] = Summary(values)
    return found


def seeds(group: Group) -> str:
    """The seed of each run; with a seed of its own for the data, both."""
    words = []
    for run in group.runs:
        distinct = [str(seed) for seed in dict.fromkeys(run.seeds)]
        words.append("/".join(distinct) or MISSING)
    return ", ".join(words)


def epochs(group: Group, stages: list[int] | None = None) -> str:
    """Finished epochs of each stage, `of` those that the config asks for where they are fewer.

    Args:
        group: the runs.
        stages: numbers of the stages; None: all.
    """
    parts = []
    for index in range(len(group.stages)) if stages is None else stages:
        words = dict.fromkeys(map(_epochs_of_stage, group.of_stage(index)))
        parts.append(" / ".join(words))
    return " + ".join(parts)


def _epochs_of_stage(stage: StageRun) -> str:
    planned = stage.settings.get("trainer.max_epochs")
    fewer = isinstance(planned, int) and stage.epochs < planned
    return f"{stage.epochs} of {planned}" if fewer else str(stage.epochs)


def time_per_run(group: Group, stage: int | None = None) -> str:
    """Mean over the runs of the time that training and validation took, where TensorBoard's files tell it.

    Args:
        group: the runs.
        stage: number of one stage; None: all together.
    """
    totals = []
    for run in group.runs:
        seconds = [one.seconds for one in (run.stages if stage is None else [run.stages[stage]])]
        totals += [] if None in seconds else [math.fsum(one for one in seconds if one is not None)]
    return duration(math.fsum(totals) / len(totals)) if totals else MISSING


def duration(seconds: float) -> str:
    """A time in the two units that suit it."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left:02} min" if hours else f"{minutes} min {rest:02} s"
