"""How dense a ticket is: a geometric schedule over levels, a cubic one within a training, in exact numbers of weights.

Source: iterative magnitude pruning (Frankle and Carbin, ICLR 2019, arXiv 1803.03635), which prunes the same share of
what is left at each level.
"""

from __future__ import annotations

import math

from bnfree.errors import InputError


def level_densities(
    rate: float = 0.2, target_density: float | None = None, levels: int | None = None
) -> tuple[float, ...]:
    """The densities of all levels, the dense level 0 included.

    Level k has density (1 - rate)^k. The last level of a `target_density` has exactly that density, also where this
    makes its step smaller than the others.

    Args:
        rate: share of the surviving weights that each level prunes, between 0 and 1.
        target_density: where to stop, above 0 and at most 1.
        levels: number of levels after the dense one; together with `target_density`, the levels that come first.

    Raises:
        InputError: a value out of range, or neither a target nor a number of levels.

    Example:
        >>> [round(density, 3) for density in level_densities(0.2, target_density=0.45)]
        [1.0, 0.8, 0.64, 0.512, 0.45]
    """
    check_rate(rate)
    if target_density is not None:
        check_density(target_density, "target_density")
    if levels is not None and levels < 0:
        raise InputError(f"levels={levels} must be at least 0.")
    if target_density is None and levels is None:
        raise InputError("neither target_density nor levels is given; say where pruning is to end.")
    densities = [1.0]
    while levels is None or len(densities) <= levels:
        if target_density is not None and densities[-1] <= target_density:
            break
        following = (1 - rate) ** len(densities)
        # A level that misses the target by rounding alone is the target.
        reached = target_density is not None and following <= target_density * (1 + 1e-9)
        densities.append(target_density if reached and target_density is not None else following)
    return tuple(densities)


def ramped_density(progress: float, initial_density: float, density: float) -> float:
    """The density in the course of a training that prunes as it goes: fast at first, then ever more slowly.

    density + (initial_density - density) * (1 - progress)^3, the cubic ramp of Zhu and Gupta (2017, arXiv 1710.01878).

    Args:
        progress: how much of the ramp is over, from 0; from 1 on the result is `density`.
        initial_density: density at 0.
        density: density at 1.

    Example:
        >>> [round(ramped_density(t, 0.5, 0.1), 3) for t in (0, 0.25, 0.5, 1, 2)]
        [0.5, 0.269, 0.15, 0.1, 0.1]
    """
    return density + (initial_density - density) * (1 - min(progress, 1.0)) ** 3


def kept_count(weights: int, density: float) -> int:
    """How many of so many weights survive at a density: the nearest integer, half a weight upwards."""
    return math.floor(weights * density + 0.5)


def check_density(density: float, argument: str = "density") -> None:
    """Refuses what is no density.

    Raises:
        InputError: not above 0 and at most 1.
    """
    if not 0 < density <= 1:
        raise InputError(f"{argument}={density} must be above 0 and at most 1: the share of weights that survive.")


def check_rate(rate: float) -> None:
    """Refuses what is no rate.

    Raises:
        InputError: not between 0 and 1.
    """
    if not 0 < rate < 1:
        raise InputError(f"rate={rate} must be between 0 and 1: the share of the surviving weights to prune.")
