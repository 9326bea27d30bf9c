"""What reports are read from and written as: YAML and CSV files in, Markdown and CSV files out."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bnfree.errors import InputError
from bnfree.files import whole_file

REPORT = "report.md"
"""Name of the report's text in its directory."""


def existing_directory(path: str | Path, argument: str, remedy: str) -> Path:
    """The directory that a user has named.

    Args:
        path: the directory.
        argument: what the messages call it.
        remedy: what would be right.

    Raises:
        InputError: it is a file, or does not exist.
    """
    directory = Path(path).expanduser()
    if not directory.is_dir():
        what = "is a file" if directory.exists() else "does not exist"
        raise InputError(f"{argument}={str(path)!r} {what}; {remedy}")
    return directory


def read_settings(path: Path, writer: str = "bnfree") -> dict[str, Any]:
    """The settings in a YAML file.

    Args:
        path: the file.
        writer: what writes such files, for messages.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{str(path)!r} cannot be read ({' '.join(str(error).split())}).") from error
    if not isinstance(content, dict):
        raise InputError(f"{str(path)!r} holds no settings; give a directory that {writer} has written.")
    return content


def read_csv_file(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file by heading.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}).") from error


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """A CSV file; None becomes an empty field.

    Args:
        columns: the headings.
        rows: a value for each heading.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is the heading."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], f"| {' | '.join('---' for _ in cells[0])} |", *lines[1:]])


def markdown_list(lines: Sequence[str]) -> list[str]:
    """A part of a report with a bullet for each line; none without lines."""
    return ["\n".join(f"- {line}" for line in lines)] if lines else []


def markdown_image(title: str, name: str | None) -> list[str]:
    """A part of a report that shows a figure; none without one."""
    return [f"![{title}]({name})"] if name else []


def relative_link(path: Path, directory: Path) -> str:
    """A path as it is seen from a directory."""
    return Path(os.path.relpath(path.absolute(), directory.absolute())).as_posix()


def write_files(directory: Path, files: Mapping[str, bytes], argument: str, remedy: str) -> None:
    """Writes the files of a report; the directory is created.

    Args:
        directory: where they go.
        files: content by name.
        argument: what the messages call the directory.
        remedy: what would be right.

    Raises:
        InputError: they cannot be written there.
    """
    try:
        for name, content in files.items():
            with whole_file(directory / name) as unfinished:
                unfinished.write_bytes(content)
    except OSError as error:
        raise InputError(f"{argument}={str(directory)!r} cannot be written to ({error.strerror}); {remedy}") from error


@dataclass(frozen=True, kw_only=True)
class ReportResult:
    """What a report has written, and its table."""

    path: Path
    """The text, `report.md`."""
    figures: tuple[Path, ...]
    """PNG files that the text shows, as far as there was something to draw."""
    rows: tuple[dict[str, str], ...]
    """The table of results in the text, by heading: accuracies in percent, mean and spread over the seeds."""


def rows_by_heading(rows: Sequence[Sequence[str]]) -> tuple[dict[str, str], ...]:
    """The rows of a table, whose first one is the heading, by heading."""
    heading, *lines = rows
    return tuple(dict(zip(heading, line, strict=True)) for line in lines)
