"""`bnfree fit`."""

from __future__ import annotations

from collections.abc import Sequence

from bnfree.lightning_modules.training.fit import fit
from bnfree.lightning_modules.training.settings import FitSettings


def run(arguments: Sequence[str]) -> None:
    """Trains a network.

    Args:
        arguments: `fit` and its options.

    Raises:
        InputError: a mistake in what the user gave.
    """
    fit(FitSettings(arguments=tuple(arguments[1:])))
