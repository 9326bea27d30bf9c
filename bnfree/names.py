"""The nearest right name to a misspelt one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that begins so, or else the most similar one, without regard to case; None if none is similar."""
    by_lower: dict[str, str] = {}
    for candidate in known:
        by_lower.setdefault(candidate.lower(), candidate)
    continued = [candidate for candidate in by_lower if len(name) > 2 and candidate.startswith(name.lower())]
    if continued:
        return by_lower[min(continued, key=len)]
    matches = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[matches[0]] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A remedy that names the nearest known name, or an empty string."""
    match = nearest(name, known)
    return f"did you mean {match!r}?" if match else ""
