"""The report as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

import yaml

from bnfree.lightning_modules.experiments.lottery.level_results import is_control
from bnfree.lightning_modules.reports.lottery.groups import LevelGroup, percentage_points
from bnfree.lightning_modules.reports.lottery.layers import LevelCounts
from bnfree.lightning_modules.reports.lottery.overlaps import Overlaps, evenly
from bnfree.lightning_modules.reports.lottery.reading import Lottery
from bnfree.lightning_modules.reports.lottery.results import gist, result_rows
from bnfree.lightning_modules.reports.runs.markdown import table
from bnfree.lightning_modules.reports.runs.summaries import MISSING, duration

MOST_LEVELS = 6
SPEED = """\
What this saves. A pruned binary network is smaller than the dense one only below a density of 0.227, and only in an
entropy-coded file: a weight costs H(d) bits for the mask and d for the signs of the survivors, a dense one 1 bit. In
memory a weight with a mask takes 2 bits, twice as much as without. Single zeros make nothing faster: they lie inside of
words of weights, which are computed as a whole, with one more AND and one more load for the mask. The kept operations
are therefore theoretical: what a machine that skips zeros would have to do. A denser ticket is for science, not for
size."""


def report(
    lottery: Lottery,
    groups: Sequence[LevelGroup],
    counts: Sequence[LevelCounts],
    overlaps: Overlaps | None,
    figures: dict[str, str],
    notes: Sequence[str],
    tolerance: float,
) -> str:
    """The text of `report.md`.

    Args:
        lottery: the run.
        groups: its levels, seeds taken together.
        counts: what its levels keep, layer by layer.
        overlaps: what its masks have in common; None with fewer than two.
        figures: from `curve`, `layers` and `overlaps` to the file of the figure, as far as they have been drawn.
        notes: what is missing or does not fit together.
        tolerance: how far a matching mean may lie below the dense one, as a share.
    """
    metric = lottery.metric
    several = any(len(group.results) > 1 for group in groups)
    parts = [f"# Lottery run {lottery.title}"]
    parts += _list(gist(groups, metric, tolerance))
    parts += _figure("Accuracy by density", figures.get("curve"))
    parts += [table(result_rows(groups, metric, tolerance)), _reading(metric, tolerance, several)]
    parts += _list([f"Not finished: {folder}." for folder in lottery.unfinished] + list(notes))
    if counts:
        parts += ["## Zeros, bits and speed", table(_sizes(groups, counts)), " ".join(SPEED.split())]
        parts += ["## Layers", *_figure("Density of each layer", figures.get("layers")), *_layers(groups, counts)]
    if overlaps is not None:
        parts += ["## Masks", *_figure("Overlap of the masks", figures.get("overlaps")), _overlap_words(overlaps)]
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


def _list(lines: Sequence[str]) -> list[str]:
    return ["\n".join(f"- {line}" for line in lines)] if lines else []


def _figure(title: str, name: str | None) -> list[str]:
    return [f"![{title}]({name})"] if name else []


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
        if not own or is_control(group.kind):
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
    return [table(rows), "Kept share of the weights, mean over the seeds. Every level, seed and control: layers.csv."]


def shown_levels(groups: Sequence[LevelGroup], counts: Sequence[LevelCounts]) -> list[LevelGroup]:
    """The groups whose layers are shown: tickets of at most `MOST_LEVELS` levels, evenly spaced."""
    counted = [group for group in groups if group.results[0].mask_checksum is not None and counts_of(group, counts)]
    kind = next((group.kind for group in counted if group.kind == "ticket"), counted[0].kind if counted else "")
    of_kind = {group.level: group for group in counted if group.kind == kind}
    return [of_kind[level] for level in evenly(sorted(of_kind), MOST_LEVELS)]


def _overlap_words(overlaps: Overlaps) -> str:
    return (
        "Jaccard index of each pair of masks (survivors of both over survivors of either), below the diagonal; above "
        "it what two masks with the same densities in each layer have by chance. The colour says where between chance "
        "(0) and the most that the two densities allow (1) a pair lies. A random control must lie at chance: one that "
        "does not has not done what it says. Controls that keep the ticket's mask are left out."
    )
