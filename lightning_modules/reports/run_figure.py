"""The figure of a report on runs: curves over epochs, panel by panel, and the gains of the layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
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
from bnfree.lightning_modules.reports.run_groups import Band, Group
from bnfree.lightning_modules.reports.runs import CLIPPED, FLIPPED, LEARNING_RATE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LayerGains = dict[str, float]

LINE_STYLES = ("-", "--", ":", "-.")
WIDTH, PANEL_HEIGHT, GAINS_HEIGHT = 11.0, 2.9, 3.3
# Of a panel's height, what title and axis leave.
PANEL_AXES_SHARE = 0.72
FEW_POINTS = 20
# More groups or longer names than this do not fit beside the lines.
MOST_NAMES, LONGEST_NAME = 5, 20


@dataclass(frozen=True)
class Panel:
    """One pair of axes over epochs."""

    title: str
    unit: str
    lines: dict[str, str]
    """From a metric to what its line is called beside the group's label."""
    percent: bool = False
    from_zero: bool = False
    marked: bool = True
    scale_of: str = ""
    """Panels with the same word here have the same vertical axis."""


# Of one group, training and validation stand in one panel; of several, side by side.
TOGETHER = (
    Panel("Accuracy", "accuracy", {"val/acc": "validation", "train/acc": "training"}, percent=True),
    Panel("Loss", "loss", {"val/loss": "validation", "train/loss": "training"}),
)
APART = (
    Panel("Validation accuracy", "accuracy", {"val/acc": ""}, percent=True, scale_of="accuracy"),
    Panel("Training accuracy", "accuracy", {"train/acc": ""}, percent=True, scale_of="accuracy"),
    Panel("Validation loss", "loss", {"val/loss": ""}, scale_of="loss"),
    Panel("Training loss", "loss", {"train/loss": ""}, scale_of="loss"),
)
MORE_PANELS = (
    Panel("Learning rate", "learning rate", {LEARNING_RATE: ""}, from_zero=True, marked=False),
    Panel("Gradient clipping, mean over the epoch", "units clipped", {CLIPPED: ""}, percent=True, from_zero=True),
    Panel("Sign flips in the epoch", "weights flipped", {FLIPPED: ""}, percent=True, from_zero=True),
)


def draw_runs(groups: list[Group], title: str) -> Figure:
    """Curves of all groups, panel by panel; what none of the runs has measured is left out.

    Args:
        groups: runs that differ in their seeds alone, drawn as mean and band from the least to the greatest value.
        title: title of the figure.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    panels = [
        panel
        for panel in (*(TOGETHER if len(groups) == 1 else APART), *MORE_PANELS)
        if any(group.bands(metric) for group in groups for metric in panel.lines)
    ]
    gains = any(first_and_last(group) for group in groups)
    rows = max(1, (len(panels) + 1) // 2)
    height = PANEL_HEIGHT * rows + GAINS_HEIGHT * gains + 0.6
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, hspace=0.04)
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout=layout)
    heights = [PANEL_HEIGHT] * rows + [GAINS_HEIGHT] * gains
    grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
    cells = [(row, slice(column, column + 1)) for row in range(rows) for column in (0, 1)]
    if len(panels) % 2:
        cells[-2:] = [(rows - 1, slice(0, 2))]
    scales: dict[str, list[Axes]] = {}
    drawn: list[tuple[Axes, list[EndLabel]]] = []
    in_place = len(groups) <= MOST_NAMES and all(len(group.label) <= LONGEST_NAME for group in groups)
    # Of one group the colours tell training from validation, and a legend would say something else.
    in_place = in_place or len(groups) == 1
    for panel, cell in zip(panels, cells, strict=False):
        axes = figure.add_subplot(grid[cell])
        drawn.append((axes, _draw_panel(axes, panel, groups, in_place)))
        if panel.scale_of:
            scales.setdefault(panel.scale_of, []).append(axes)
    for several in scales.values():
        limits = [axes.get_ylim() for axes in several]
        for axes in several:
            axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    for axes, labels in drawn:
        write_at_ends(axes, labels, 72 * PANEL_HEIGHT * PANEL_AXES_SHARE)
    if in_place:
        figure.suptitle(title, fontsize=14, fontweight="bold")
    else:
        _draw_legend(figure, groups, title)
    if gains:
        _draw_gains(figure.add_subplot(grid[rows, :]), groups, named=in_place and len(groups) > 1)
    if any(len(group.runs) > 1 for group in groups):
        figure.supxlabel("line: mean over seeds; band: lowest to highest seed", fontsize=FONT_SIZE, color=GREY)
    return figure


def _draw_panel(axes: Axes, panel: Panel, groups: list[Group], in_place: bool) -> list[EndLabel]:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    lines = [
        (group, name, bands)
        for group in groups
        for metric, name in panel.lines.items()
        for bands in (group.bands(metric),)
        if bands
    ]
    equal = len(lines) == len(groups) > 1 and all(_same(bands, lines[0][2]) for _, _, bands in lines)
    labels = []
    for index, (group, name, bands) in enumerate(lines[:1] if equal else lines):
        number = groups.index(group) if len(groups) > 1 else index
        color = GREY if equal else COLORS[number % len(COLORS)]
        # Under an equal line a wider one stays visible.
        above = 0 if equal else sum(_same(other, bands) for _, _, other in lines[index + 1 :])
        for band in bands:
            _draw_band(axes, band, color, _style(number), 1.8 + 2 * above, panel.marked)
        words = [name if len(groups) == 1 else group.label if in_place else ""]
        # A training that has diverged ends where it was last finite.
        points = [(x, mean) for x, (mean, _, _) in bands[-1].items() if math.isfinite(mean)]
        words += [f"{100 * points[-1][1]:.1f} %"] if points and panel.unit == "accuracy" else []
        if any(words) and points and not equal:
            labels.append(EndLabel(*points[-1], "\n".join(filter(None, words)), color))
    named = _mark_stages(axes, groups)
    title = f"{panel.title} (the same in all)" if equal else panel.title
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=18 if named else 6)
    axes.set_xlabel("epoch", fontsize=FONT_SIZE)
    axes.set_ylabel(f"{panel.unit} (%)" if panel.percent else panel.unit, fontsize=FONT_SIZE)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if panel.percent:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}"))
    axes.set_xlim(0, max(group.borders()[-1] for group in groups))
    axes.margins(y=0.08)
    if panel.from_zero:
        axes.set_ylim(0, 1.08 * max(axes.dataLim.y1, 1e-12))
    plain_axes(axes)
    return labels


def _same(bands: list[Band], others: list[Band]) -> bool:
    """Whether two lines cover each other."""
    one, other = ([(x, *values) for band in several for x, values in band.items()] for several in (bands, others))
    return len(one) == len(other) and all(
        math.isclose(a, b, rel_tol=1e-6) for p, q in zip(one, other, strict=True) for a, b in zip(p, q, strict=True)
    )


def _style(number: int) -> str:
    return LINE_STYLES[number // len(COLORS) % len(LINE_STYLES)]


def _draw_legend(figure: Figure, groups: list[Group], title: str) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=COLORS[i % len(COLORS)], ls=_style(i), lw=2.5, label=group.label)
        for i, group in enumerate(groups)
    ]
    columns = max(1, min(len(groups), 110 // (max(len(group.label) for group in groups) + 8)))
    figure.legend(
        handles=handles, loc="outside upper center", ncols=columns, fontsize=10, frameon=False,
        title=title, title_fontproperties={"size": 14, "weight": "bold"},
    )  # fmt: skip


def _draw_band(axes: Axes, band: Band, color: str, style: str, width: float, marked: bool) -> None:
    epochs = list(band)
    means, lows, highs = zip(*band.values(), strict=True)
    marker = "o" if len(epochs) == 1 or (marked and len(epochs) <= FEW_POINTS) else ""
    axes.plot(epochs, means, style, color=color, lw=width, marker=marker, ms=3.5, clip_on=False)
    if lows != highs:
        axes.fill_between(epochs, lows, highs, color=color, alpha=0.18, lw=0)


def _mark_stages(axes: Axes, groups: list[Group]) -> bool:
    """A line where a stage ends, and whether the names stand above: where the stages are the same in all groups."""
    borders = {(tuple(group.stages), tuple(group.borders())) for group in groups}
    for _, ends in borders:
        for end in ends[:-1]:
            axes.axvline(end, color=GREY, lw=1, ls=(0, (4, 3)), zorder=0)
    (names, ends), *others = borders
    if not others:
        for name, start, end in zip(names, (0, *ends), ends, strict=False):
            axes.annotate(
                name, ((start + end) / 2, 1), xycoords=("data", "axes fraction"), xytext=(0, 3),
                textcoords="offset points", ha="center", va="bottom", fontsize=FONT_SIZE, color=GREY,
            )  # fmt: skip
    return not others and any(names)


def first_and_last(group: Group) -> tuple[tuple[int, LayerGains], tuple[int, LayerGains]] | None:
    """Number of trained epochs and mean gain by layer, the first and the last that all runs have; None without any."""
    found: dict[int, LayerGains] = {}
    for index, start in enumerate([0, *group.borders()[:-1]]):
        stages = group.of_stage(index)
        for epoch in sorted(set.intersection(*(set(stage.gains) for stage in stages))):
            of_runs = [stage.gains[epoch] for stage in stages]
            layers = [layer for layer in of_runs[0] if all(layer in gains for gains in of_runs)]
            found[start + epoch + 1] = {
                layer: math.fsum(gains[layer] for gains in of_runs) / len(of_runs) for layer in layers
            }
    return (next(iter(found.items())), next(reversed(found.items()))) if found else None


def _draw_gains(axes: Axes, groups: list[Group], named: bool) -> None:
    """Draws mean |gain| of each layer, dashed after the first epoch and solid after the last.

    Args:
        axes: where to draw.
        groups: all groups; those without gains are passed over.
        named: write the labels of the groups beside the lines.
    """
    found = [(index, group, ends) for index, group in enumerate(groups) if (ends := first_and_last(group))]
    layers = list(dict.fromkeys(layer for _, _, ends in found for _, gains in ends for layer in gains))
    positions = {layer: position for position, layer in enumerate(layers)}
    labels, epochs = [], set()
    for index, group, ((first, before), (last, after)) in found:
        color = COLORS[index % len(COLORS)]
        epochs.add((first, last))
        if first != last:
            axes.plot(
                [positions[la] for la in before], list(before.values()), "o--", color=color, lw=1, ms=4, mfc="white"
            )
        axes.plot([positions[la] for la in after], list(after.values()), "o-", color=color, lw=1.8, ms=4)
        end = list(after)[-1]
        labels.append(EndLabel(positions[end], after[end], group.label, color))
    axes.set_title(f"Mean |gain| of each layer, {_when(epochs)}", loc="left", fontsize=11, fontweight="bold")
    axes.set_xticks(range(len(layers)), [short_layer(layer) for layer in layers], rotation=90)
    axes.set_xlabel("layer (stage or block . unit), from input to output", fontsize=FONT_SIZE)
    axes.set_ylabel("mean |gain|", fontsize=FONT_SIZE)
    axes.set_xlim(-0.5, len(layers) - 0.5)
    plain_axes(axes)
    if named:
        write_at_ends(axes, labels, 72 * 1.9)


def _when(epochs: set[tuple[int, int]]) -> str:
    if len(epochs) > 1:
        return "after the first epoch (dashed) and the last (solid)"
    ((first, last),) = epochs
    return f"after epoch {last}" if first == last else f"after epoch {first} (dashed) and {last} (solid)"
