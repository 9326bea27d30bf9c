"""The rows of `metrics.csv` as curves over the number of trained epochs."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable

Row = dict[str, float]
Table = list[Row]

ACCURACIES_AND_LOSSES = ("train/acc", "val/acc", "train/loss", "val/loss")
CLIPPED = "agc/clipped_fraction"
FLIPPED = "signs/flipped"
LEARNING_RATE = "learning rate"
METRICS_SHOWN = (*ACCURACIES_AND_LOSSES, CLIPPED, FLIPPED)


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


def mean_curve(curves: Iterable[dict[float, float]]) -> dict[float, tuple[float, float, float]]:
    """Mean, least and greatest value of several curves, where all of them have one."""
    several = list(curves)
    common = [x for x in several[0] if all(x in curve for curve in several)] if several else []
    return {
        x: (math.fsum(values) / len(values), min(values), max(values))
        for x in common
        for values in ([curve[x] for curve in several],)
    }
