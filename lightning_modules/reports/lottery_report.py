"""The report on a lottery run: how it is made, and its text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from bnfree.errors import InputError
from bnfree.lightning_modules.reports.documents import (
    REPORT,
    ReportResult,
    markdown_image,
    markdown_list,
    markdown_table,
    rows_by_heading,
    write_files,
)
from bnfree.lightning_modules.reports.figures import save_png
from bnfree.lightning_modules.reports.lotteries import (
    DENSE,
    TOLERANCE,
    LevelGroup,
    LotteryRun,
    group_levels,
    read_lottery_run,
)
from bnfree.lightning_modules.reports.lottery_figures import draw_curve, draw_layers
from bnfree.lightning_modules.reports.lottery_layers import LevelCounts, count_levels
from bnfree.lightning_modules.reports.lottery_overlaps import Overlaps, compare_masks, draw_overlaps, evenly
from bnfree.lightning_modules.reports.lottery_tables import layers_csv, level_rows, levels_csv, verdicts
from bnfree.lightning_modules.reports.summaries import MISSING, duration, percentage_points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVELS, LAYERS = "levels.csv", "layers.csv"
FIGURES = {"curve": "accuracy.png", "layers": "layers.png", "overlaps": "overlaps.png"}
MOST_LEVELS = 6
SPEED = """\
What this saves. A pruned binary network is smaller than the dense one only below a density of 0.227, and only in an
entropy-coded file: a weight costs H(d) bits for the mask and d for the signs of the survivors, a dense one 1 bit. In
memory a weight with a mask takes 2 bits, twice as much as without. Single zeros make nothing faster: they lie inside of
words of weights, which are computed as a whole, with one more AND and one more load for the mask. The kept operations
are therefore theoretical: what a machine that skips zeros would have to do. A denser ticket is for science, not for
size."""
OVERLAPS = (
    "Jaccard index of each pair of masks (survivors of both over survivors of either), below the diagonal; above "
    "it what two masks with the same densities in each layer have by chance. The colour says where between chance "
    "(0) and the most that the two densities allow (1) a pair lies. A random control must lie at chance: one that "
    "does not has not done what it says. Controls that keep the ticket's mask are left out."
)


@dataclass(frozen=True, kw_only=True)
class LotteryReport(ReportResult):
    """The report on a lottery run."""

    tables: tuple[Path, ...]
    """`levels.csv` and `layers.csv`."""
    lottery: LotteryRun
    """What the directory holds."""
    groups: tuple[LevelGroup, ...]
    """Levels that differ in their seeds alone, taken together; `accuracy` of each is a number."""
    verdicts: tuple[str, ...]
    """Which ticket of each kind is the sparsest that matches the dense network, in sentences."""
    tolerance: float
    """How far the mean of a matching level might lie below the dense one, as a share."""


def report_lottery(directory: str | Path, tolerance: float = TOLERANCE) -> LotteryReport:
    """Writes `levels.csv`, `layers.csv`, `report.md` and its figures into the directory of a lottery run.

    Whatever has finished is reported, with or without controls, of one seed or several. Equal results give equal CSV
    files byte for byte; times stand in `report.md` alone.

    Args:
        directory: of `run_lottery`.
        tolerance: how far the mean accuracy of a matching level may lie below the dense one, as a share from 0 to 1.

    Raises:
        InputError: a tolerance that is no share, a directory that is no lottery run, has no finished level, holds a
            damaged ticket, or cannot be written to; nothing has been written then.
    """
    if not 0 <= tolerance <= 1:
        raise InputError(f"tolerance={tolerance:g} must be a share from 0 to 1, such as 0.01 for one point.")
    lottery = read_lottery_run(directory)
    groups = group_levels(lottery.levels)
    counts, notes = count_levels(lottery.levels)
    overlaps = compare_masks(lottery.levels)
    drawn = {name: save_png(figure) for name, figure in _figures(lottery, groups, counts, overlaps, tolerance)}
    names = {figure: FIGURES[figure] for figure in drawn}
    texts = {
        LEVELS: levels_csv(lottery.levels, counts),
        LAYERS: layers_csv(counts),
        REPORT: _markdown(lottery, groups, counts, overlaps, names, notes, tolerance),
    }
    pictures = {names[figure]: content for figure, content in drawn.items()}
    contents = {name: text.encode() for name, text in texts.items()}
    write_files(lottery.directory, {**pictures, **contents}, "DIR", "give a writable copy of it.")
    # A figure of an earlier report that this one does not have would be of something else.
    for name in set(FIGURES.values()) - set(pictures):
        (lottery.directory / name).unlink(missing_ok=True)
    return LotteryReport(
        path=lottery.directory / REPORT,
        figures=tuple(lottery.directory / name for name in pictures),
        rows=rows_by_heading(level_rows(groups, lottery.metric, tolerance)),
        tables=(lottery.directory / LEVELS, lottery.directory / LAYERS),
        lottery=lottery,
        groups=tuple(groups),
        verdicts=tuple(verdicts(groups, lottery.metric, tolerance)),
        tolerance=tolerance,
    )


def _figures(
    lottery: LotteryRun,
    groups: Sequence[LevelGroup],
    counts: Sequence[LevelCounts],
    overlaps: Overlaps | None,
    tolerance: float,
) -> Iterator[tuple[str, Figure]]:
    """The figures for which there is something to draw, by key of `FIGURES`."""
    if any(group.kind != DENSE and group.accuracy(lottery.metric) for group in groups):
        yield "curve", draw_curve(groups, lottery.metric, tolerance, f"{lottery.title}: accuracy by density")
    shown = [(f"level {g.level}, {g.name}", counts_of(g, counts)) for g in shown_levels(groups, counts)]
    if shown:
        yield "layers", draw_layers(shown, f"{lottery.title}: density of each layer")
    if overlaps is not None:
        yield "overlaps", draw_overlaps(overlaps, f"{lottery.title}: overlap of the masks")


def _markdown(
    lottery: LotteryRun,
    groups: Sequence[LevelGroup],
    counts: Sequence[LevelCounts],
    overlaps: Overlaps | None,
    figures: Mapping[str, str],
    notes: Sequence[str],
    tolerance: float,
) -> str:
    """The text of `report.md`.

    Args:
        lottery: the run.
        groups: its levels, seeds taken together.
        counts: what its levels keep, layer by layer.
        overlaps: what its masks have in common; None with fewer than two.
        figures: files of the figures that have been drawn, by key of `FIGURES`.
        notes: what is missing or does not fit together.
        tolerance: how far a matching mean may lie below the dense one, as a share.
    """
    metric = lottery.metric
    several = any(len(group.results) > 1 for group in groups)
    parts = [f"# Lottery run {lottery.title}"]
    parts += markdown_list(verdicts(groups, metric, tolerance))
    parts += markdown_image("Accuracy by density", figures.get("curve"))
    parts += [markdown_table(level_rows(groups, metric, tolerance)), _reading(metric, tolerance, several)]
    parts += markdown_list([f"Not finished: {folder}." for folder in lottery.unfinished] + list(notes))
    if counts:
        parts += ["## Zeros, bits and speed", markdown_table(_sizes(groups, counts)), " ".join(SPEED.split())]
        parts += [
            "## Layers",
            *markdown_image("Density of each layer", figures.get("layers")),
            *_layers(groups, counts),
        ]
    if overlaps is not None:
        parts += [
            "## Masks",
            *markdown_image("Overlap of the masks", figures.get("overlaps")),
            OVERLAPS,
        ]
    total, number = math.fsum(level.seconds for level in lottery.levels), len(lottery.levels)
    parts += ["## Time", f"{duration(total)} of training in {number} finished level{'s' * (number > 1)}."]
    if lottery.settings:
        parts += ["## Settings", f"```yaml\n{yaml.safe_dump(lottery.settings, sort_keys=False).rstrip()}\n```"]
    return "\n\n".join(parts) + "\n"


def _reading(metric: str, tolerance: float, several: bool) -> str:
    which = "validation accuracy after the last epoch"
    if metric == "test":
        which = "test accuracy (as bnfree fit tests, the best checkpoint of each level)"
    text = (
        f"Verdict by the {which}: matching if its mean lies below that of the dense networks of the same seeds by "
        f"{percentage_points(tolerance)} at most. n: number of seeds. Lead: the ticket of the level minus its control."
    )
    return f"{text} ±: sample standard deviation over the seeds." if several else f"{text} One seed tells no spread."


def counts_of(group: LevelGroup, counts: Sequence[LevelCounts]) -> list[LevelCounts]:
    """The counts of a group's levels, in the order of its seeds."""
    members = {id(result) for result in group.results}
    return [count for count in counts if id(count.level) in members]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None


def _sizes(groups: Sequence[LevelGroup], counts: Sequence[LevelCounts]) -> list[list[str]]:
    """One row for each group that has been counted and is no control: means over the seeds, prunable layers alone."""
    rows = [["level", "kind", "density", "true zeros", "of weights", "kept BOPs (theoretical)",
             "stored bits per weight (entropy-coded)", "smaller than dense", "stored kB, dense kB",
             "bits per weight in memory"]]  # fmt: skip
    for group in groups:
        own = counts_of(group, counts)
        if not own or group.is_control:
            continue
        bits = math.fsum(count.bits_per_weight for count in own) / len(own)
        weights = own[0].total("weights") or 0
        zeros = _mean([count.total("effective_zeros") for count in own])
        kept, bops = (_mean([count.total(name) for count in own]) for name in ("kept_bops", "bops"))
        dense = group.results[0].mask_checksum is None
        rows.append([
            str(group.level), group.name, f"{group.density:.3g}",
            MISSING if zeros is None else f"{zeros:,.0f} ({100 * zeros / weights:.2f} %)", f"{weights:,}",
            f"{100 * kept / bops:.1f} %" if kept is not None and bops else MISSING, f"{bits:.3f}",
            "—" if dense else f"{1 / bits:.2f} times" if bits < 1 else "no",
            f"{bits * weights / 8000:.1f}, {weights / 8000:.1f}", "1" if dense else "2",
        ])  # fmt: skip
    return rows


def _layers(groups: Sequence[LevelGroup], counts: Sequence[LevelCounts]) -> list[str]:
    """The densities of the layers, level by level; the full table is `layers.csv`."""
    shown = shown_levels(groups, counts)
    if not shown:
        return []
    of_levels = [counts_of(group, counts) for group in shown]
    names = [f"level {group.level} ({group.name})" for group in shown]
    rows = [["layer", "weights", "BOPs", *names, "emptied filters at the last"]]
    for index, layer in enumerate(of_levels[-1][0].layers):
        densities = [math.fsum(count.layers[index].mask.density for count in own) / len(own) for own in of_levels]
        empty = [count.layers[index].mask.empty_filters for count in of_levels[-1]]
        bops = MISSING if layer.bops is None else f"{layer.bops:,}"
        rows.append([f"`{layer.mask.name}`", f"{layer.mask.weights:,}", bops, *(f"{d:.3g}" for d in densities),
                     f"{math.fsum(empty) / len(empty):g} of {layer.mask.filters}"])  # fmt: skip
    words = "Kept share of the weights, mean over the seeds. Every level, seed and control: layers.csv."
    return [markdown_table(rows), words]


def shown_levels(groups: Sequence[LevelGroup], counts: Sequence[LevelCounts]) -> list[LevelGroup]:
    """The groups whose layers are shown: tickets of at most `MOST_LEVELS` levels, evenly spaced."""
    counted = [group for group in groups if group.results[0].mask_checksum is not None and counts_of(group, counts)]
    kind = next((group.kind for group in counted if group.kind == "ticket"), counted[0].kind if counted else "")
    of_kind = {group.level: group for group in counted if group.kind == kind}
    return [of_kind[level] for level in evenly(sorted(of_kind), MOST_LEVELS)]
