"""The bars of density, layer by layer, one panel for each level."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bnfree.lightning_modules.reports.lottery.layers import LevelCounts
from bnfree.lightning_modules.reports.runs.direct_labels import FONT_SIZE
from bnfree.lightning_modules.reports.runs.figure import COLORS, DPI, GREY
from bnfree.lightning_modules.reports.runs.gains import short_layer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_HEIGHT, LABELS_HEIGHT = 1.45, 1.5
LAYER_WIDTH, LEAST_WIDTH, MOST_WIDTH = 0.33, 7.0, 16.0


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
    axes.tick_params(labelsize=FONT_SIZE)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
