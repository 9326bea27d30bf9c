"""What all figures have in common: colours, sizes, names at the ends of lines, and PNG files, all without pyplot."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart, without the yellow that is too pale for lines.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#555555"
LEADER = "#999999"
DPI = 150
FONT_SIZE = 9.0


@dataclass(frozen=True)
class EndLabel:
    """What is to be written at the end of a line."""

    x: float
    """Where the line ends, in the units of the axes."""
    y: float
    """Likewise."""
    text: str
    """One line or several."""
    color: str


def write_at_ends(axes: Axes, labels: list[EndLabel], height: float) -> None:
    """Writes labels to the right of the axes, each as near to the end of its line as the others allow.

    Args:
        axes: finished but for the labels: their limits are fixed here.
        labels: what to write.
        height: of the axes, in points.
    """
    axes.set_xlim(axes.get_xlim())
    axes.set_ylim(axes.get_ylim())
    to_fraction = axes.transData + axes.transAxes.inverted()
    ends = [to_fraction.transform((label.x, label.y)) for label in labels]
    sizes = [(label.text.count("\n") + 1) * 1.3 * FONT_SIZE / height for label in labels]
    places = spread([float(y) for _, y in ends], sizes)
    for label, place in zip(labels, places, strict=True):
        # Pale, thin and dotted: in the colour of its line it would look like more of the line.
        leader = {"arrowstyle": "-", "color": LEADER, "lw": 0.6, "linestyle": ":", "shrinkA": 3, "shrinkB": 2}
        leader["relpos"] = (0, 0.5)
        axes.annotate(
            label.text,
            xy=(label.x, label.y),
            xytext=(1.035, place),
            textcoords="axes fraction",
            color=label.color,
            fontsize=FONT_SIZE,
            va="center",
            annotation_clip=False,
            arrowprops=leader,
        )


def spread(wanted: list[float], sizes: list[float]) -> list[float]:
    """Places for the middles of labels that lie as near to the wanted ones as their sizes allow (least squares).

    Args:
        wanted: where each middle should be, 0 bottom to 1 top.
        sizes: height of each, in the same units.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    # Without their sizes the places need only be in order; so they are merged until they are.
    offsets, total = [], 0.0
    for i in order:
        offsets.append(total + sizes[i] / 2)
        total += sizes[i]
    blocks: list[tuple[float, int]] = []
    for i, offset in zip(order, offsets, strict=True):
        blocks.append((wanted[i] - offset, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (last, m), (before, n) = blocks.pop(), blocks.pop()
            blocks.append(((before * n + last * m) / (m + n), m + n))
    # All of them between bottom and top; beyond both by the same if there is no room.
    low, high = min(0.0, (1 - total) / 2), max(1 - total, (1 - total) / 2)
    bases = [min(max(base, low), high) for base, count in blocks for _ in range(count)]
    places = [0.0] * len(wanted)
    for i, base, offset in zip(order, bases, offsets, strict=True):
        places[i] = base + offset
    return places


def plain_axes(axes: Axes, grid: Literal["both", "y"] = "both") -> None:
    """Gives axes a pale grid, small ticks, and no frame above and to the right."""
    axes.tick_params(labelsize=FONT_SIZE)
    axes.grid(axis=grid, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def short_layer(name: str) -> str:
    """A layer's name without the parts that all layers share.

    Example:
        >>> short_layer("body.1.0.convolution")
        '1.0'
    """
    parts = [part for part in name.split(".") if part not in ("body", "convolution")]
    return " ".join(filter(None, [".".join(p for p in parts if p.isdigit()), *(p for p in parts if not p.isdigit())]))


def save_png(figure: Figure) -> bytes:
    """The figure as a PNG file, in which a dollar is a dollar: names of classes and runs are no formulas."""
    from matplotlib import rc_context
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    buffer = BytesIO()
    # For those that are made while it is drawn.
    with rc_context({"text.parse_math": False}):
        figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
