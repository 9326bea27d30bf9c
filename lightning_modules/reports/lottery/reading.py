"""What the directory of a lottery run holds: its finished levels, and those that are still under way."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from bnfree.errors import InputError
from bnfree.lightning_modules.experiments.lottery.level_results import FINISHED, LevelResult, read_levels

SETTINGS = "lottery.yaml"


@dataclass(frozen=True)
class Lottery:
    """A lottery run, as far as it has come."""

    directory: Path
    """As the user has given it."""
    levels: list[LevelResult]
    """The finished levels, controls included; at least one."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Content of `lottery.yaml`; empty without it."""
    unfinished: list[str] = field(default_factory=list)
    """Folders of levels that have begun and not finished, relative to the directory."""

    @property
    def metric(self) -> Literal["test", "val"]:
        """The accuracy to compare levels by: of the test where all levels have one, otherwise the last validation's."""
        return "test" if all(level.test_acc is not None for level in self.levels) else "val"

    @property
    def title(self) -> str:
        """Name of the run."""
        return self.directory.resolve().name


def read_lottery(path: str | Path) -> Lottery:
    """Reads the directory of a lottery run.

    Args:
        path: the directory, which `bnfree lottery run` has written.

    Raises:
        InputError: another kind of directory, or one without a finished level.
    """
    directory = Path(path).expanduser()
    if not directory.is_dir():
        what = "is a file" if directory.exists() else "does not exist"
        raise InputError(f"DIR={str(path)!r} {what}; give the directory of a bnfree lottery run.")
    levels = read_levels(directory)
    if not levels and not (directory / SETTINGS).is_file():
        above = next((parent for parent in directory.resolve().parents if (parent / SETTINGS).is_file()), None)
        inside = sorted(directory.glob(f"*/{SETTINGS}"))
        remedy = "give a directory that bnfree lottery run has written."
        if above is not None:
            remedy = f"it lies in one, {str(above)!r}."
        elif inside:
            remedy = f"it holds some, such as {str(inside[0].parent)!r}."
        raise InputError(f"DIR={str(path)!r} is no lottery run, for it has neither {SETTINGS} nor levels; {remedy}")
    if not levels:
        raise InputError(f"DIR={str(path)!r} has no finished level yet; report it once one has trained.")
    folders = [f for f in directory.glob("seed_*/**/level_*") if f.is_dir() and re.fullmatch(r"level_\d+", f.name)]
    unfinished = [f.relative_to(directory).as_posix() for f in sorted(folders) if not (f / FINISHED).is_file()]
    return Lottery(directory, levels, _settings(directory / SETTINGS), unfinished)


def _settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{str(path)!r} cannot be read ({' '.join(str(error).split())}).") from error
    if not isinstance(content, dict):
        raise InputError(f"{str(path)!r} holds no settings; give a directory that bnfree lottery run has written.")
    return content
