"""`bnfree fit`."""

from __future__ import annotations

from collections.abc import Sequence

from bnfree.lightning_modules.command.help import ALL, asks_for_help, print_help


def run(arguments: Sequence[str]) -> None:
    """Trains a network.

    Args:
        arguments: `fit` and its options.

    Raises:
        InputError: a mistake in what the user gave.
    """
    options = tuple(arguments[1:])
    if asks_for_help(options):
        print_help("fit", options)
        return
    # The help is there without torch.
    from bnfree.lightning_modules.training.fit import fit
    from bnfree.lightning_modules.training.settings import FitSettings

    fit(FitSettings(arguments=tuple("--help" if option == ALL else option for option in options)))
