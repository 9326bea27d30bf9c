"""Which classes a run's test has taken for which: a figure and a table of what its `ConfusionMatrix` has counted."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bnfree.errors import InputError
from bnfree.lightning_modules.reports.figures import FONT_SIZE, GREY
from bnfree.lightning_modules.reports.summaries import MISSING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = "test_confusion.csv"
"""Written by `bnfree.callbacks.ConfusionMatrix`, which reports do not import: they do without torch."""
MOST_DRAWN = 100
MOST_WRITTEN = 25


@dataclass(frozen=True)
class Confusion:
    """Images of a test by class and by the class that they were taken for."""

    names: list[str]
    """Of the classes."""
    counts: list[list[int]]
    """A row for each class, a column for each that its images were taken for."""

    def accuracies(self) -> list[float | None]:
        """Share of each class that is right, from 0 to 1; None for one without images."""
        return [row[i] / sum(row) if sum(row) else None for i, row in enumerate(self.counts)]


def read_confusion(run: Path) -> Confusion | None:
    """What a run's test has counted; None where it has counted nothing.

    Raises:
        InputError: the file is damaged.
    """
    path = run / FILE
    if not path.is_file():
        return None
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        counts = [[int(value) for value in row[1:]] for row in rows]
        size = len(header) - 1
        if header[0] != "class" or len(counts) != size or any(len(row) != size for row in counts):
            raise ValueError
    except (ValueError, IndexError, csv.Error):
        raise InputError(f"{str(path)!r} is damaged; remove it, and the report does without.") from None
    return Confusion(header[1:], counts)


def draw_confusion(confusion: Confusion) -> Figure:
    """The matrix in shares of each class, up to 25 classes with the number of images in each field."""
    from matplotlib.figure import Figure

    size = len(confusion.names)
    side = max(3.5, min(0.42 * size + 1.5, 12.0))
    figure = Figure(figsize=(side + 1.0, side), layout="constrained")
    axes = figure.subplots()
    shares = [[value / max(1, sum(row)) for value in row] for row in confusion.counts]
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.tick_params(labelsize=FONT_SIZE)
    if size <= MOST_WRITTEN:
        axes.set_xticks(range(size), confusion.names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(size), confusion.names)
        for i, row in enumerate(confusion.counts):
            for j, value in enumerate(row):
                if value:
                    color = "white" if shares[i][j] > 0.5 else GREY
                    axes.text(j, i, str(value), ha="center", va="center", color=color, fontsize=FONT_SIZE - 1)
    axes.set_xlabel("taken for", fontsize=FONT_SIZE)
    axes.set_ylabel("class", fontsize=FONT_SIZE)
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
    bar.set_label("share of the class", fontsize=FONT_SIZE)
    bar.ax.tick_params(labelsize=FONT_SIZE)
    return figure


def class_rows(confusion: Confusion) -> list[list[str]]:
    """A heading and a row for each class, the one with most mistakes first: images, accuracy, what it is taken for."""
    accuracies = confusion.accuracies()
    order = sorted(range(len(accuracies)), key=lambda i: 1.0 if accuracies[i] is None else float(accuracies[i] or 0))
    rows = [["class", "test images", "accuracy (%)", "most often taken for"]]
    for i in order:
        row, share = confusion.counts[i], accuracies[i]
        count, other = max(((count, -j) for j, count in enumerate(row) if j != i), default=(0, 0))
        rows.append(
            [
                confusion.names[i],
                str(sum(row)),
                MISSING if share is None else f"{100 * share:.2f}",
                f"{confusion.names[-other]} ({count})" if count else MISSING,
            ]
        )
    return rows
