"""The panel of gains: one value for each layer, after the first and after the last epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bnfree.lightning_modules.reports.runs.direct_labels import FONT_SIZE, EndLabel, write_at_ends
from bnfree.lightning_modules.reports.runs.groups import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LayerGains = dict[str, float]


def has_gains(groups: list[Group]) -> bool:
    """Whether there is anything to draw."""
    return any(first_and_last(group) for group in groups)


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


def draw_gains(axes: Axes, groups: list[Group], colors: Sequence[str], named: bool) -> None:
    """Draws mean |gain| of each layer, dashed after the first epoch and solid after the last.

    Args:
        axes: where to draw.
        groups: all groups; those without gains are passed over.
        colors: one for each group.
        named: write the labels of the groups beside the lines.
    """
    found = [(index, group, ends) for index, group in enumerate(groups) if (ends := first_and_last(group))]
    layers = list(dict.fromkeys(layer for _, _, ends in found for _, gains in ends for layer in gains))
    positions = {layer: position for position, layer in enumerate(layers)}
    labels, epochs = [], set()
    for index, group, ((first, before), (last, after)) in found:
        color = colors[index % len(colors)]
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
    axes.tick_params(labelsize=FONT_SIZE)
    axes.set_xlabel("layer (stage or block . unit), from input to output", fontsize=FONT_SIZE)
    axes.set_ylabel("mean |gain|", fontsize=FONT_SIZE)
    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if named:
        write_at_ends(axes, labels, 72 * 1.9)


def _when(epochs: set[tuple[int, int]]) -> str:
    if len(epochs) > 1:
        return "after the first epoch (dashed) and the last (solid)"
    ((first, last),) = epochs
    return f"after epoch {last}" if first == last else f"after epoch {first} (dashed) and {last} (solid)"


def short_layer(name: str) -> str:
    """A layer's name without the parts that all layers share."""
    parts = [part for part in name.split(".") if part not in ("body", "convolution")]
    return " ".join(filter(None, [".".join(p for p in parts if p.isdigit()), *(p for p in parts if not p.isdigit())]))
