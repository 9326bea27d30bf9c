"""Times of several functions in one interleaved run, so that all see the same machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

LEAST_ROUNDS = 10
MOST_ROUNDS = 2000


@dataclass(frozen=True)
class Times:
    """Of one call, in seconds."""

    median: float
    p95: float
    """95 % of the calls took no longer."""
    calls: int


def interleaved(functions: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, Times]:
    """Calls every function in turn, round after round.

    Args:
        functions: by name; they have run before.
        seconds: how long all of them together may take, as far as ten rounds fit into it.
    """
    for function in functions.values():
        function()
    start = time.perf_counter()
    for function in functions.values():
        function()
    rounds = int(seconds / max(time.perf_counter() - start, 1e-9))
    measured: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(min(max(rounds, LEAST_ROUNDS), MOST_ROUNDS)):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            measured[name].append(time.perf_counter() - start)
    return {name: summarize(values) for name, values in measured.items()}


def summarize(values: list[float]) -> Times:
    """Median and 95th percentile (nearest rank) of at least one time."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return Times(median, ordered[math.ceil(0.95 * len(ordered)) - 1], len(ordered))
