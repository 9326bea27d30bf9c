"""Tables as text, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH = 100


def columns(rows: Sequence[Sequence[str]], left: int = 1, width: int | None = WIDTH) -> list[str]:
    """Lines whose cells stand below each other; long names are cut at their beginning.

    Args:
        rows: one sequence of cells for each line, all of the same length.
        left: number of columns that are flush left.
        width: of a line at most, for which the first column gives way; None: as long as the cells ask for.

    Example:
        >>> columns([("layer", "kept"), ("stem", "7")])
        ['layer     kept', 'stem         7']
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    if width is not None:
        widths[0] = max(8, min(widths[0], width - sum(widths[1:]) - 2 * (len(widths) - 1)))
    return [
        "  ".join(
            _padded(cell, size, i < left) for i, (cell, size) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def table(
    titles: Sequence[str], rows: Sequence[Sequence[str]], last: Sequence[str] | None = None, left: int = 1
) -> str:
    """Columns under their titles, at most 100 characters wide; long names are cut at their beginning.

    Args:
        titles: of the columns; the first one is that of the names.
        rows: one for each layer.
        last: a row below them, such as their total.
        left: number of columns that are flush left.
    """
    heading, *lines = columns([titles, *rows, *([] if last is None else [last])], left)
    rule = "-" * max(map(len, (heading, *lines)))
    body = lines[: len(rows)]
    return "\n".join([heading, rule, *body, *([] if last is None else [rule, lines[-1]])])


def fields(pairs: Sequence[tuple[str, str]], width: int | None = None) -> str:
    """Names and what they are, one a line; what is longer than a line goes on below.

    Args:
        pairs: names and texts.
        width: of the names; None: two more than that of the longest.
    """
    width = max(len(name) for name, _ in pairs) + 2 if width is None else width
    return "\n".join("\n".join(_wrapped(name, text, width)) for name, text in pairs)


def short_count(count: float) -> str:
    """A count in at most five characters.

    Example:
        >>> short_count(36864)
        '36.9k'
    """
    for unit in ("", "k", "M", "G"):
        if count < 999.5:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g}T"


def _wrapped(name: str, text: str, width: int) -> list[str]:
    lines, line = [], ""
    for word in text.split(" "):
        if line and len(line) + len(word) + 1 > WIDTH - width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return [f"{name if i == 0 else '':<{width}}{part}" for i, part in enumerate([*lines, line])]


def _padded(text: str, width: int, left: bool) -> str:
    if len(text) > width:
        text = "..." + text[len(text) - width + 3 :]
    return text.ljust(width) if left else text.rjust(width)
