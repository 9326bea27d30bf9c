"""The matrix of overlaps between masks: measured below the diagonal, by chance above it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bnfree.lightning_modules.reports.lottery.overlaps import Overlaps
from bnfree.lightning_modules.reports.runs.direct_labels import FONT_SIZE
from bnfree.lightning_modules.reports.runs.figure import DPI, GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELL, LEAST_SIDE, LETTER, BAR, ABOVE_AND_BELOW = 0.42, 2.0, 0.085, 2.1, 1.1


def draw_overlaps(overlaps: Overlaps, title: str) -> Figure:
    """Jaccard indices of all pairs and their chance levels; the colour says where between chance and the most one lies.

    Args:
        overlaps: what the masks have in common.
        title: title of the figure.
    """
    from matplotlib.figure import Figure

    number = len(overlaps.levels)
    side = max(CELL * number, LEAST_SIDE)
    densities = [f"{100 * level.density:.3g} %" for level in overlaps.levels]
    names = [f"{density}  {name}" for density, name in zip(densities, overlaps.names, strict=True)]
    width = side + LETTER * max(map(len, names)) + BAR
    figure = Figure(figsize=(width, side + ABOVE_AND_BELOW), dpi=DPI, layout="compressed")
    axes = figure.add_subplot()
    positions = [[overlaps.position(i, j) if j < i else math.nan for j in range(number)] for i in range(number)]
    image = axes.imshow(positions, cmap="cividis", vmin=0, vmax=1)
    _write_values(axes, overlaps)
    numbers = [str(i) for i in range(1, number + 1)]
    axes.set_xticks(range(number), numbers, fontsize=FONT_SIZE)
    axes.set_yticks(
        range(number), [f"{name}   {i}" for i, name in zip(numbers, names, strict=True)], fontsize=FONT_SIZE
    )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    several = len({level.level for level in overlaps.levels}) < number
    for index in range(1, number if several else 0):
        if overlaps.levels[index].level != overlaps.levels[index - 1].level:
            axes.axhline(index - 0.5, color=GREY, lw=0.8)
            axes.axvline(index - 0.5, color=GREY, lw=0.8)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    note = "Jaccard index: measured below the diagonal, by chance above"
    figure.supxlabel(note, fontsize=FONT_SIZE, color=GREY)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=[0, 0.5, 1])
    bar.ax.set_yticklabels(["by chance", "half-way", "most\npossible"], fontsize=FONT_SIZE)
    return figure


def _write_values(axes: Axes, overlaps: Overlaps) -> None:
    for i in range(len(overlaps.levels)):
        for j in range(len(overlaps.levels)):
            if i == j:
                continue
            value = overlaps.jaccard[i][j] if j < i else overlaps.chance[i][j]
            text = f"{value:.2f}".removeprefix("0") if value < 0.995 else "1"
            color = GREY if j > i else "black" if overlaps.position(i, j) > 0.55 else "white"
            axes.text(j, i, text, ha="center", va="center", fontsize=FONT_SIZE - 1.5, color=color)
