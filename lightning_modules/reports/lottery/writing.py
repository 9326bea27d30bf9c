"""Writing the report of a lottery run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bnfree.errors import InputError
from bnfree.lightning_modules.reports.lottery.curve_figure import draw_curve
from bnfree.lightning_modules.reports.lottery.groups import DENSE, TOLERANCE, group_levels
from bnfree.lightning_modules.reports.lottery.layer_figure import draw_layers
from bnfree.lightning_modules.reports.lottery.layers import LevelCounts, count_levels
from bnfree.lightning_modules.reports.lottery.markdown import counts_of, report, shown_levels
from bnfree.lightning_modules.reports.lottery.overlap_figure import draw_overlaps
from bnfree.lightning_modules.reports.lottery.overlaps import compare_masks
from bnfree.lightning_modules.reports.lottery.reading import Lottery, read_lottery
from bnfree.lightning_modules.reports.lottery.tables import layers_csv, levels_csv
from bnfree.lightning_modules.reports.runs.figure import save_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVELS, LAYERS, REPORT = "levels.csv", "layers.csv", "report.md"
FIGURES = {"curve": "accuracy.png", "layers": "layers.png", "overlaps": "overlaps.png"}


def write_report(directory: str | Path, tolerance: float = TOLERANCE) -> Path:
    """Writes `levels.csv`, `layers.csv`, `report.md` and its figures into the directory of a lottery run.

    Whatever has finished is reported, with or without controls, of one seed or several. Equal results give equal CSV
    files byte for byte; times stand in `report.md` alone.

    Args:
        directory: of `bnfree lottery run`.
        tolerance: how far the mean accuracy of a matching level may lie below the dense one, as a share from 0 to 1.

    Returns:
        The path of `report.md`.

    Raises:
        InputError: a directory that is no lottery run, has no finished level, holds a damaged ticket, or cannot be
            written to; nothing has been written then.
    """
    lottery = read_lottery(directory)
    groups = group_levels(lottery.levels)
    counts, notes = count_levels(lottery.levels)
    overlaps = compare_masks(lottery.levels)
    figures: dict[str, Figure] = {}
    if any(group.kind != DENSE and group.accuracy(lottery.metric) for group in groups):
        figures["curve"] = draw_curve(groups, lottery.metric, tolerance, f"{lottery.title}: accuracy by density")
    shown = shown_levels(groups, counts)
    if shown:
        named: list[tuple[str, Sequence[LevelCounts]]] = [
            (f"level {group.level}, {group.name}", counts_of(group, counts)) for group in shown
        ]
        figures["layers"] = draw_layers(named, f"{lottery.title}: density of each layer")
    if overlaps is not None:
        figures["overlaps"] = draw_overlaps(overlaps, f"{lottery.title}: overlap of the masks")
    drawn = {name: FIGURES[name] for name in figures}
    texts = {
        LEVELS: levels_csv(lottery.levels, counts),
        LAYERS: layers_csv(counts),
        REPORT: report(lottery, groups, counts, overlaps, drawn, notes, tolerance),
    }
    _write(lottery, {name: text.encode() for name, text in texts.items()}, figures)
    return lottery.directory / REPORT


def _write(lottery: Lottery, texts: dict[str, bytes], figures: dict[str, Figure]) -> None:
    files = {FIGURES[name]: save_png(figure) for name, figure in figures.items()} | texts
    try:
        for name, content in files.items():
            (lottery.directory / name).write_bytes(content)
        # A figure of an earlier report that this one does not have would be of something else.
        for name in set(FIGURES.values()) - set(files):
            (lottery.directory / name).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"DIR={str(lottery.directory)!r} cannot be written to ({error.strerror}); give a writable copy of it."
        ) from error
