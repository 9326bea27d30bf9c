"""The curve of accuracy over density, and the bars of density layer by layer."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bnfree.lightning_modules.reports.figures import (
    COLORS,
    DPI,
    FONT_SIZE,
    GREY,
    EndLabel,
    plain_axes,
    short_layer,
    write_at_ends,
)
from bnfree.lightning_modules.reports.lotteries import DENSE, LevelGroup, Metric, dense_of
from bnfree.lightning_modules.reports.lottery_layers import LevelCounts
from bnfree.lightning_modules.reports.summaries import percentage_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 9.0, 4.8
# Of the figure's height, what title and axis leave.
CURVE_AXES_SHARE = 0.78
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK = COLORS
KIND_STYLES = {
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
PANEL_HEIGHT, LABELS_HEIGHT = 1.45, 1.5
LAYER_WIDTH, LEAST_WIDTH, MOST_WIDTH = 0.33, 7.0, 16.0


def draw_curve(groups: Sequence[LevelGroup], metric: Metric, tolerance: float, title: str) -> Figure:
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
    for kind in dict.fromkeys(group.kind for group in sorted(measured, key=lambda group: group.is_control)):
        if kind != DENSE:
            labels.append(_draw_kind(axes, [group for group in measured if group.kind == kind], dense, metric))
    which = "test" if metric == "test" else "validation"
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
    axes.set_ylabel(f"{which} accuracy (%)", fontsize=FONT_SIZE)
    axes.set_xlabel("\n".join(["density: kept weights (%), logarithmic", *_spread(measured)]), fontsize=FONT_SIZE)
    axes.margins(y=0.08)
    plain_axes(axes)
    write_at_ends(axes, labels, 72 * HEIGHT * CURVE_AXES_SHARE)
    return figure


def _spread(groups: Sequence[LevelGroup]) -> list[str]:
    numbers = sorted({len(group.results) for group in groups})
    if numbers[-1] == 1:
        return []
    number = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    return [f"points: mean over {number} seeds; bars and band: ± standard deviation"]


def _draw_dense(axes: Axes, dense: LevelGroup, metric: Metric, tolerance: float) -> list[EndLabel]:
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


def _draw_kind(axes: Axes, groups: Sequence[LevelGroup], dense: LevelGroup | None, metric: Metric) -> EndLabel:
    color, marker, style = KIND_STYLES.get(groups[0].kind, (GREY, "*", ":"))
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
        zorder=3 if groups[0].is_control else 4,
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


def draw_layers(levels: Sequence[tuple[str, Sequence[LevelCounts]]], title: str) -> Figure:
    """Kept share of each layer: mean over the seeds, with their standard deviation, and a line for all layers together.

    Args:
        levels: from top to bottom: what each level is called, and its counts, one for each seed.
        title: title of the figure.
    """
    from matplotlib.figure import Figure

    names = [layer.mask.name for layer in levels[0][1][0].layers]
    width = min(max(LAYER_WIDTH * len(names) + 1.2, LEAST_WIDTH), MOST_WIDTH)
    height = PANEL_HEIGHT * len(levels) + LABELS_HEIGHT
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    panels = figure.subplots(len(levels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, counts) in zip(panels, levels, strict=True):
        _draw_level(axes, name, counts)
    last = panels[-1]
    every = max(1, math.ceil(len(names) * 0.16 / width))
    last.set_xticks(range(0, len(names), every), [short_layer(name) for name in names[::every]], rotation=90)
    last.set_xlim(-0.6, len(names) - 0.4)
    seeds = max(len(counts) for _, counts in levels)
    note = f"\nbars: mean over {seeds} seeds, with ± standard deviation" if seeds > 1 else ""
    last.set_xlabel(f"layer, from input to output{note}", fontsize=FONT_SIZE)
    figure.supylabel("kept weights (%)", fontsize=FONT_SIZE)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    return figure


def _draw_level(axes: Axes, name: str, counts: Sequence[LevelCounts]) -> None:
    layers = list(zip(*(count.layers for count in counts), strict=True))
    shares = [[100 * seed.mask.density for seed in layer] for layer in layers]
    means = [math.fsum(values) / len(values) for values in shares]
    spreads = [statistics.stdev(values) for values in shares] if len(counts) > 1 else None
    everywhere = 100 * math.fsum(count.density for count in counts) / len(counts)
    axes.bar(
        range(len(means)), means, yerr=spreads, color=COLORS[0], alpha=0.85, width=0.72,
        error_kw={"elinewidth": 1.1, "capsize": 2},
    )  # fmt: skip
    axes.axhline(everywhere, color=COLORS[1], lw=1.3, ls="--")
    # Beside the panel, where no bar can be.
    axes.annotate(
        f"all\n{everywhere:.3g} %", (1, everywhere), xycoords=("axes fraction", "data"), xytext=(5, 0),
        textcoords="offset points", va="center", fontsize=FONT_SIZE, color=COLORS[1],
    )  # fmt: skip
    axes.set_title(name, loc="left", fontsize=FONT_SIZE + 1, color=GREY)
    tops = [mean + spread for mean, spread in zip(means, spreads or [0.0] * len(means), strict=True)]
    axes.set_ylim(0, 1.08 * max(*tops, everywhere, 1e-9))
    axes.set_axisbelow(True)
    plain_axes(axes, grid="y")
