"""The figure of `budget.py`: accuracy over the number of images shown, one line for each norm."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bnfree.lightning_modules.reports.figures import COLORS, FONT_SIZE, GREY, EndLabel, write_at_ends

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, HEIGHT, DPI = 8.0, 4.5, 110
# Of the figure's height, what title and axis leave.
AXES_SHARE = 0.78
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK = COLORS
STYLES = {
    ("bn_free", "approx"): (BLUE, "o", "-"),
    ("batch_norm", "approx"): (VERMILION, "s", "-"),
    ("none", "approx"): (GREEN, "^", "-."),
    ("reference", "approx"): (PURPLE, "v", "-."),
    ("bn_free", "sigmoid"): (SKY, "D", "--"),
    ("bn_free", "ste"): (ORANGE, "P", "--"),
}


def draw(lines: Sequence[dict[str, str]]) -> Figure:
    """Every run as a point and the means over the seeds as lines.

    Other estimators than the default and other options are drawn from two budgets or widths on: a single one says
    nothing about growth.

    Args:
        lines: of finished runs, as `budget.read` gives them.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator

    series: dict[tuple[str, str, str, str], dict[int, list[float]]] = {}
    for line in lines:
        key = line["norm"], line["estimator"], line["width"], line["options"]
        shown = series.setdefault(key, {}).setdefault(int(line["presentations"]), [])
        shown.append(float(line["test"]))
    places = Counter((key[0], key[1], key[3]) for key, found in series.items() for _ in found)
    series = {
        (norm, estimator, width, options): found
        for (norm, estimator, width, options), found in series.items()
        if (estimator == "approx" and not options) or places[norm, estimator, options] > 1
    }
    widths = {width for _, _, width, _ in series}
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    labels = []
    for (norm, estimator, width, options), found in sorted(series.items()):
        color, marker, style = (GREY, "*", ":") if options else STYLES.get((norm, estimator), (GREY, "*", ":"))
        budgets = sorted(found)
        means = [statistics.mean(found[budget]) for budget in budgets]
        axes.plot(budgets, means, color=color, ls=style, lw=1.6)
        points = [(budget, accuracy) for budget in budgets for accuracy in found[budget]]
        axes.plot(*zip(*points, strict=True), color=color, marker=marker, ls="", ms=4.5, alpha=0.65)
        words = [norm, *([estimator] if estimator != "approx" else []), *([f"w{width}"] * (len(widths) > 1))]
        # Of `--trainer.callbacks+=package.Plugin` the plugin.
        name = " ".join([*words, *(option.split(".")[-1] for option in options.split())])
        labels.append(EndLabel(budgets[-1], means[-1], f"{name} {means[-1]:.1f} %", color))
    budgets = sorted({budget for found in series.values() for budget in found})
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(budgets))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.margins(x=0.04, y=0.08)
    axes.set_title("CIFAR-10 (JPEG): accuracy as training grows", loc="left", fontsize=12, fontweight="bold")
    axes.set_xlabel("training images shown, logarithmic; points: seeds, lines: their means", fontsize=FONT_SIZE)
    axes.set_ylabel("test accuracy (%)", fontsize=FONT_SIZE)
    axes.tick_params(labelsize=FONT_SIZE)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    write_at_ends(axes, labels, 72 * HEIGHT * AXES_SHARE)
    return figure
