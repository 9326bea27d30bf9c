"""The results of a lottery: their tables, and what they come to; rows of text, and CSV files for further use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from bnfree.lightning_modules.experiments.lottery.level_results import LevelResult, is_control
from bnfree.lightning_modules.reports.documents import csv_text
from bnfree.lightning_modules.reports.lotteries import DENSE, LevelGroup, Metric, Verdict, dense_of, judge
from bnfree.lightning_modules.reports.lottery_layers import LevelCounts
from bnfree.lightning_modules.reports.summaries import MISSING, duration

HEADINGS = {"test": "test acc (%)", "val": "last val acc (%)", "best_val": "best val acc (%)"}
LEVEL_COLUMNS = (
    "kind", "seed", "level", "density", "weights", "effective_zeros", "val_acc", "best_val_acc", "test_acc", "epochs",
    "steps", "mask_checksum", "weights_checksum",
)  # fmt: skip
LAYER_COLUMNS = (
    "kind", "seed", "level", "layer", "weights", "kept", "density", "effective_zeros", "filters", "empty_filters",
    "bops", "kept_bops", "kept_bops_share", "entropy_bits", "dense_bits",
)  # fmt: skip
ALL_LAYERS = "all"


def level_rows(groups: Sequence[LevelGroup], metric: Metric, tolerance: float) -> list[list[str]]:
    """A heading and a row for each group: accuracies, difference to dense, verdict, the ticket's lead over a control.

    Args:
        groups: all groups, by level.
        metric: the accuracy that verdict and differences are about.
        tolerance: see `judge`.
    """
    names: tuple[Literal["test", "val", "best_val"], ...] = ("test", "val", "best_val")
    shown = [name for name in names if any(group.accuracy(name) for group in groups)]
    rows = [["level", "density", "kind", "n", *(HEADINGS[name] for name in shown), "to dense (points)", "verdict",
             "ticket's lead (points)", "time per level"]]  # fmt: skip
    dense = dense_of(groups)
    for group in groups:
        verdict = judge(group, dense, metric, tolerance)
        lead = judge(ticket, group, metric, 0.0) if (ticket := _ticket_of(group, groups)) else None
        accuracies = [summary.percent(singly=False) if (summary := group.accuracy(name)) else MISSING for name in shown]
        rows.append([
            str(group.level), f"{group.density:.3g}", group.name, str(len(group.results)), *accuracies,
            _points(verdict), _word(verdict), _points(lead), duration(group.seconds),
        ])  # fmt: skip
    return rows


def brief_rows(groups: Sequence[LevelGroup], metric: Metric, tolerance: float) -> list[list[str]]:
    """A heading and a row for each level, the kinds side by side: for the terminal.

    Args:
        groups: all groups, by level.
        metric: which accuracy.
        tolerance: see `judge`.
    """
    dense = dense_of(groups)
    kinds = {group.kind: group.name for group in groups if group.kind != DENSE}
    order = sorted(kinds, key=is_control)
    most = max(len(group.results) for group in groups)
    heading = ["level", "density"]
    for kind in order:
        heading += [kinds[kind]] + ["to dense", "verdict"] * (not is_control(kind))
    rows = [heading]
    for level in dict.fromkeys(group.level for group in groups if group.kind != DENSE):
        own = {group.kind: group for group in groups if group.level == level and group.kind != DENSE}
        row = [str(level), f"{next(iter(own.values())).density:.3g}"]
        for kind in order:
            group = own.get(kind)
            verdict = judge(group, dense, metric, tolerance) if group else None
            row += [accuracy_text(group, metric, most)] + [_points(verdict), _word(verdict)] * (not is_control(kind))
        rows.append(row)
    return rows


def control_rows(groups: Sequence[LevelGroup], metric: Metric, tolerance: float) -> list[list[str]]:
    """A heading and a row for each ticket and each of its controls: accuracy, verdict, the ticket's lead.

    Args:
        groups: all groups, by level.
        metric: which accuracy.
        tolerance: see `judge`.
    """
    dense = dense_of(groups)
    most = max(len(group.results) for group in groups)
    which = "test" if metric == "test" else "last val"
    rows = [["level", "density", "kind", f"{which} acc (%)", "to dense", "verdict", "ticket minus control"]]
    for ticket in (group for group in groups if group.kind == "ticket"):
        controls = [group for group in groups if group.level == ticket.level and group.is_control]
        for group in (ticket, *controls) if controls else ():
            verdict = judge(group, dense, metric, tolerance)
            lead = judge(ticket, group, metric, 0.0)
            rows.append([
                str(group.level), f"{group.density:.3g}", group.name, accuracy_text(group, metric, most),
                _points(verdict), _word(verdict), _points(lead) if group is not ticket else "",
            ])  # fmt: skip
    return rows


def accuracy_text(group: LevelGroup | None, metric: Metric, most: int) -> str:
    """Mean and spread in percent, with the number of seeds where it is not the usual one.

    Args:
        group: the group; None: a dash.
        metric: which accuracy.
        most: the usual number of seeds.
    """
    summary = group.accuracy(metric) if group else None
    if summary is None:
        return MISSING
    return summary.percent(singly=False) + (f" (n={len(summary.values)})" if len(summary.values) < most else "")


def _word(verdict: Verdict | None) -> str:
    return MISSING if verdict is None else verdict.word


def _points(verdict: Verdict | None) -> str:
    return MISSING if verdict is None else verdict.difference.points()


def verdicts(groups: Sequence[LevelGroup], metric: Metric, tolerance: float) -> list[str]:
    """Which is the sparsest matching ticket of each kind, and whether its controls match too.

    Args:
        groups: all groups, by level.
        metric: which accuracy.
        tolerance: see `judge`.
    """
    dense = dense_of(groups)
    lines = []
    for kind in dict.fromkeys(group.kind for group in groups if group.kind != DENSE and not group.is_control):
        judged = [(g, v) for g in groups if g.kind == kind and (v := judge(g, dense, metric, tolerance))]
        name = next(group.name for group in groups if group.kind == kind)
        if not judged:
            lines.append(f"{name.capitalize()}: no verdict, for no seed has both a ticket and a dense network.")
            continue
        matching = [pair for pair in judged if pair[1].matching]
        if not matching:
            best, verdict = max(judged, key=lambda pair: pair[1].difference.mean)
            lines.append(
                f"No {name} matches the dense network; the nearest is level {best.level} at density "
                f"{best.density:.3g}, {_points(verdict)} points."
            )
            continue
        sparsest, verdict = min(matching, key=lambda pair: pair[0].density)
        lines.append(
            f"Sparsest matching {name}: level {sparsest.level} at density {sparsest.density:.3g}, {_points(verdict)} "
            f"points to dense{_beside_controls(sparsest, groups, metric, tolerance)}."
        )
    return lines


def _beside_controls(ticket: LevelGroup, groups: Sequence[LevelGroup], metric: Metric, tolerance: float) -> str:
    """What the controls of a matching ticket say: one that matches too needs nothing of what the ticket has."""
    controls = [group for group in groups if _ticket_of(group, groups) is ticket]
    if not controls:
        return "; no control has been trained there" if ticket.kind == "ticket" else ""
    judged = {group.name: judge(group, dense_of(groups), metric, tolerance) for group in controls}
    too = [name for name, verdict in judged.items() if verdict and verdict.matching]
    if too:
        return f"; but its controls match as well: {'; '.join(too)}"
    return f"; none of its controls matches ({'; '.join(judged)})"


def _ticket_of(group: LevelGroup, groups: Sequence[LevelGroup]) -> LevelGroup | None:
    """The ticket that a control checks; None for what is no control."""
    if not group.is_control:
        return None
    return next((other for other in groups if other.kind == "ticket" and other.level == group.level), None)


def levels_csv(levels: Sequence[LevelResult], counts: Sequence[LevelCounts]) -> str:
    """One row for each finished level of each seed and kind; no times, which no repetition repeats.

    Args:
        levels: all finished levels.
        counts: what `count_levels` has found; `weights` (of the prunable layers) and `effective_zeros` come from here.
    """
    found = {id(count.level): count for count in counts}
    rows = []
    for level in levels:
        count = found.get(id(level))
        weights, zeros = (None, None) if count is None else (count.total("weights"), count.total("effective_zeros"))
        own = {name: getattr(level, name) for name in LEVEL_COLUMNS if hasattr(level, name)}
        rows.append({**own, "weights": weights, "effective_zeros": zeros})
    return csv_text(LEVEL_COLUMNS, rows)


def layers_csv(counts: Sequence[LevelCounts]) -> str:
    """One row for each prunable layer of each level, and one called `all` for their sum.

    Args:
        counts: what `count_levels` has found.
    """
    rows: list[dict[str, object]] = []
    for count in counts:
        level = {name: getattr(count.level, name) for name in ("kind", "seed", "level")}
        for layer in count.layers:
            sums = {name: getattr(layer, name) for name in ("effective_zeros", "bops", "kept_bops", "entropy_bits")}
            masks = {name: getattr(layer.mask, name) for name in ("weights", "kept", "filters", "empty_filters")}
            rows.append({**level, "layer": layer.mask.name, **_shares({**masks, **sums})})
        names = ("weights", "kept", "effective_zeros", "filters", "empty_filters", "bops", "kept_bops", "entropy_bits")
        rows.append({**level, "layer": ALL_LAYERS, **_shares({name: count.total(name) for name in names})})
    return csv_text(LAYER_COLUMNS, rows)


def _shares(values: dict[str, float | int | None]) -> dict[str, object]:
    weights, kept, bops, kept_bops = (values[name] for name in ("weights", "kept", "bops", "kept_bops"))
    bits = values["entropy_bits"]
    return {
        **values,
        "density": kept / weights if weights and kept is not None else None,
        "kept_bops_share": kept_bops / bops if bops and kept_bops is not None else None,
        # More digits would depend on the mathematical library.
        "entropy_bits": None if bits is None else round(bits, 3),
        "dense_bits": weights,
    }
