"""How much the masks of levels, seeds and controls have in common, against what chance gives; as numbers and drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bnfree.lightning_modules.experiments.lottery.level_results import LevelResult, is_control, kind_title
from bnfree.lightning_modules.reports.figures import DPI, FONT_SIZE, GREY
from bnfree.tickets import load_ticket, overlap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_MASKS = 24
CELL, LEAST_SIDE, LETTER, BAR, ABOVE_AND_BELOW = 0.42, 2.0, 0.085, 2.1, 1.1


@dataclass(frozen=True)
class Overlaps:
    """The masks that are compared, by level and within it tickets before controls, and the indices of each pair."""

    levels: tuple[LevelResult, ...]
    """Where the masks are from; at least two."""
    jaccard: list[list[float]]
    """Survivors of both over survivors of either, symmetric."""
    chance: list[list[float]]
    """The same if each mask were shuffled within its layers; symmetric, and 1 on the diagonal."""
    most: list[list[float]]
    """The same if all survivors of the sparser mask survived in the denser one; symmetric, and 1 on the diagonal."""

    def position(self, i: int, j: int) -> float:
        """Where a pair lies between its chance level (0) and the most that its densities allow (1)."""
        room = self.most[i][j] - self.chance[i][j]
        return (self.jaccard[i][j] - self.chance[i][j]) / room if room > 1e-9 else 0.0

    @property
    def names(self) -> list[str]:
        """What each mask is called beside those of its level."""
        kinds = {level.kind for level in self.levels}
        seeds = {level.seed for level in self.levels}
        return [
            ", ".join(
                [kind_title(level.kind)] * (len(kinds) > 1 or len(seeds) == 1)
                + [f"seed {level.seed}"] * (len(seeds) > 1)
            )
            for level in self.levels
        ]


def compare_masks(levels: Sequence[LevelResult]) -> Overlaps | None:
    """Compares the masks of a run; None if there are not two.

    A mask that several levels have trained with (controls that draw other weights) counts once. Controls are taken of
    the first seed, and of more than `MOST_MASKS` masks those of some levels, evenly spaced, the last one among them.

    Args:
        levels: all finished levels.

    Raises:
        InputError: a damaged ticket file, or masks of different networks.
    """
    chosen = _chosen(levels)
    if len(chosen) < 2:
        return None
    masks = [load_ticket(level.ticket).masks for level in chosen]
    jaccard, chance, most = ([[1.0] * len(masks) for _ in masks] for _ in range(3))
    for i, first in enumerate(masks):
        for j in range(i):
            found = overlap(first, masks[j])
            jaccard[i][j] = jaccard[j][i] = found.jaccard
            chance[i][j] = chance[j][i] = found.chance_jaccard
            most[i][j] = most[j][i] = min(found.first, found.second) / max(found.first, found.second, 1)
    return Overlaps(tuple(chosen), jaccard, chance, most)


def _chosen(levels: Sequence[LevelResult]) -> list[LevelResult]:
    """The levels whose masks are compared, see `compare_masks`."""
    pruned = [level for level in levels if level.mask_checksum is not None and level.ticket.is_file()]
    first_seed = min((level.seed for level in pruned if is_control(level.kind)), default=None)
    by_level: dict[int, dict[tuple[int, str | None], LevelResult]] = {}
    # The sort is stable: within a level and kind, seeds stay in order.
    for level in sorted(pruned, key=lambda level: (level.level, is_control(level.kind))):
        if not is_control(level.kind) or level.seed == first_seed:
            by_level.setdefault(level.level, {}).setdefault((level.seed, level.mask_checksum), level)
    most = max((len(masks) for masks in by_level.values()), default=1)
    numbers = evenly(sorted(by_level), max(1, MOST_MASKS // most))
    return [level for number in numbers for level in list(by_level[number].values())[:MOST_MASKS]]


def evenly(values: Sequence[int], count: int) -> list[int]:
    """At most `count` of the values, evenly spaced, the first and the last among them; of one the last."""
    if len(values) <= count:
        return list(values)
    if count == 1:
        return [values[-1]]
    return [values[round(i * (len(values) - 1) / (count - 1))] for i in range(count)]


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
