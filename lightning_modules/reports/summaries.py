"""Figures of several runs in words: mean and spread, differences in points, times."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

MISSING = "—"


@dataclass(frozen=True)
class Summary:
    """One figure of several runs, mostly a share from 0 to 1.

    Example:
        >>> Summary([0.5, 0.52]).percent(singly=False)
        '51.00 ± 1.41'
    """

    values: list[float]
    """Of each run that has it, in the order of the seeds; at least one."""

    @property
    def mean(self) -> float:
        """Arithmetic mean."""
        return math.fsum(self.values) / len(self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation (n - 1); None with one value or one that is not finite."""
        several = len(self.values) > 1 and all(map(math.isfinite, self.values))
        return statistics.stdev(self.values) if several else None

    @property
    def _spread(self) -> str:
        return f" ± {100 * self.std:.2f}" if self.std is not None else ""

    def percent(self, singly: bool = True) -> str:
        """Shares in percent: mean ± standard deviation (each value), or the one value.

        Args:
            singly: with the value of each run.
        """
        several = singly and len(self.values) > 1
        values = f" ({', '.join(f'{100 * value:.2f}' for value in self.values)})" if several else ""
        return f"{100 * self.mean:.2f}{self._spread}{values}"

    def points(self) -> str:
        """A difference of shares in percentage points, with its sign and its standard deviation."""
        # Rounded first: -0.00 would name a direction where there is none.
        return f"{round(100 * self.mean, 2) + 0.0:+.2f}{self._spread}"


def summarized(values: list[float | None]) -> Summary | None:
    """The summary of the values that are there; None if there is none."""
    found = [value for value in values if value is not None]
    return Summary(found) if found else None


def percentage_points(share: float) -> str:
    """A difference of accuracies in words: `1 point`."""
    return f"{100 * share:g} point{'s' * (share != 0.01)}"


def duration(seconds: float) -> str:
    """A time in the two units that suit it.

    Example:
        >>> duration(125)
        '2 min 05 s'
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left:02} min" if hours else f"{minutes} min {rest:02} s"
