"""Configs that the user has not named: they lie in a run directory, beside the checkpoint that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from bnfree import trust
from bnfree.errors import InputError

LARGEST = 1 << 20


class Found(str):
    """The file name of such a config among the words of a command line."""


def read_found(path: Path) -> Any:
    """What such a config holds; classes in it that this user's bnfree has signed are approved.

    Args:
        path: the file.

    Raises:
        InputError: it is no YAML, or too large for a config.
    """
    given = f"config={str(path)!r}"
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(f"{given} has more than {LARGEST} bytes, as no config has; give another one.")
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    # Dates beyond the calendar and numbers beyond all bounds are ValueErrors.
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        if isinstance(error, InputError):
            raise
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        where = "" if line is None else f", line {line + 1}"
        raise InputError(
            f"{given}{where} cannot be read as YAML ({type(error).__name__}); give a --config of your own."
        ) from error
    trust.approve_signed(content, trust.signatures_in(text))
    return content


def check_found(path: Path) -> None:
    """Refuses such a config if it names classes that a file may not name.

    Args:
        path: the file.

    Raises:
        InputError: it does, or cannot be read.
    """
    trust.check(read_found(path), f"config={str(path)!r}")
