"""The curve of accuracy over density: ticket, controls and the band of the dense network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from bnfree.lightning_modules.experiments.lottery.level_results import is_control
from bnfree.lightning_modules.reports.lottery.groups import DENSE, LevelGroup, dense_of, percentage_points
from bnfree.lightning_modules.reports.runs.direct_labels import FONT_SIZE, EndLabel, write_at_ends
from bnfree.lightning_modules.reports.runs.figure import COLORS, DPI, GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 9.0, 4.8
# Of the figure's height, what title and axis leave.
AXES_SHARE = 0.78
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK = COLORS
STYLES = {
    "ticket": (BLUE, "o", "-"),
    "random_layerwise": (VERMILION, "s", "--"),
    "random_global": (ORANGE, "D", "--"),
    "reinit": (GREEN, "^", "-."),
    "shuffle_signs": (PURPLE, "v", "-."),
    "early_bird": (SKY, "P", ":"),
    "multi_prize": (BLACK, "X", ":"),
}
# Ticks nearer to each other than this share of the axis would run into each other.
NEAREST_TICKS = 0.055


def draw_curve(groups: Sequence[LevelGroup], metric: Literal["test", "val"], tolerance: float, title: str) -> Figure:
    """Accuracy over density, which falls to the right on a logarithmic axis.

    Args:
        groups: all groups, by level; those without the accuracy are passed over.
        metric: which accuracy.
        tolerance: distance of the line below which a mean is not matching from the dense mean.
        title: title of the figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    labels: list[EndLabel] = []
    measured = [group for group in groups if group.accuracy(metric) is not None]
    _scale(axes, [group.density for group in measured])
    dense = dense_of(measured)
    if dense is not None:
        labels += _draw_dense(axes, dense, metric, tolerance)
    for kind in dict.fromkeys(group.kind for group in sorted(measured, key=lambda group: is_control(group.kind))):
        if kind != DENSE:
            labels.append(_draw_kind(axes, [group for group in measured if group.kind == kind], dense, metric))
    which = "test" if metric == "test" else "validation"
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
    axes.set_ylabel(f"{which} accuracy (%)", fontsize=FONT_SIZE)
    axes.set_xlabel("\n".join(["density: kept weights (%), logarithmic", *_spread(measured)]), fontsize=FONT_SIZE)
    axes.tick_params(labelsize=FONT_SIZE)
    axes.margins(y=0.08)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    write_at_ends(axes, labels, 72 * HEIGHT * AXES_SHARE)
    return figure


def _spread(groups: Sequence[LevelGroup]) -> list[str]:
    numbers = sorted({len(group.results) for group in groups})
    if numbers[-1] == 1:
        return []
    number = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    return [f"points: mean over {number} seeds; bars and band: ± standard deviation"]


def _draw_dense(axes: Axes, dense: LevelGroup, metric: Literal["test", "val"], tolerance: float) -> list[EndLabel]:
    summary = dense.accuracy(metric)
    assert summary is not None
    mean, spread = 100 * summary.mean, 100 * (summary.std or 0.0)
    axes.axhline(mean, color=GREY, lw=1.4, zorder=1)
    if spread:
        axes.axhspan(mean - spread, mean + spread, color=GREY, alpha=0.15, lw=0, zorder=0)
    right = axes.get_xlim()[1]
    labels = [EndLabel(right, mean, f"dense {mean:.1f} %", GREY)]
    if tolerance:
        axes.axhline(mean - 100 * tolerance, color=GREY, lw=1, ls=(0, (2, 3)), zorder=1)
        labels.append(EndLabel(right, mean - 100 * tolerance, f"{percentage_points(tolerance)} below dense", GREY))
    return labels


def _draw_kind(
    axes: Axes, groups: Sequence[LevelGroup], dense: LevelGroup | None, metric: Literal["test", "val"]
) -> EndLabel:
    color, marker, style = STYLES.get(groups[0].kind, (GREY, "*", ":"))
    # A ticket has come from the dense network, a control has not.
    start = [dense] if dense is not None and groups[0].kind == "ticket" else []
    points = []
    for group in sorted([*start, *groups], key=lambda group: -group.density):
        summary = group.accuracy(metric)
        assert summary is not None
        points.append((group.density, 100 * summary.mean, 100 * (summary.std or 0.0)))
    densities, means, spreads = zip(*points, strict=True)
    many = len(points) > 8
    axes.errorbar(
        densities, means, yerr=spreads if any(spreads) else None, color=color, marker=marker, ls=style, lw=1.8,
        ms=4 if many else 5.5, elinewidth=1.1, capsize=2 if many else 3, clip_on=False,
        zorder=3 if is_control(groups[0].kind) else 4,
    )  # fmt: skip
    return EndLabel(densities[-1], means[-1], f"{groups[0].name} {means[-1]:.1f} %", color)


def _scale(axes: Axes, densities: Sequence[float]) -> None:
    """A logarithmic axis from the dense network on the left to the sparsest ticket, ticks where something is."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    highest, lowest = max(1.0, *densities), min(densities)
    lowest = lowest if lowest < highest else highest / 2
    length = math.log(highest / lowest)
    axes.set_xscale("log")
    axes.set_xlim(highest * math.exp(0.03 * length), lowest * math.exp(-0.03 * length))
    ticks: list[float] = []
    for density in sorted({*densities, 1.0}, reverse=True):
        if not ticks or math.log(ticks[-1] / density) / length > NEAREST_TICKS:
            ticks.append(density)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{100 * tick:.2g}" if tick < 0.995 else "100" for tick in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
