"""Tables as text, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH = 100


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
    lines = [titles, *rows, *([] if last is None else [last])]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    widths[0] = max(8, min(widths[0], WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1)))
    texts = [
        "  ".join(
            _padded(text, width, i < left) for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    rule = "-" * max(map(len, texts))
    body = texts[1 : len(rows) + 1]
    return "\n".join([texts[0], rule, *body, *([] if last is None else [rule, texts[-1]])])


def fields(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and what they are, one a line; what is longer than a line goes on below."""
    width = max(len(name) for name, _ in pairs) + 2
    return "\n".join("\n".join(_wrapped(name, text, width)) for name, text in pairs)


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
