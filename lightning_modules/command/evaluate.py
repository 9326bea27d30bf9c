"""`bnfree validate`, `test` and `predict`: of a checkpoint, the last two also of a packed file."""

from __future__ import annotations

from collections.abc import Sequence

from bnfree.lightning_modules.command.help import ALL, asks_for_help, print_help


def run(arguments: Sequence[str]) -> None:
    """Runs one of the three.

    Args:
        arguments: subcommand and options.

    Raises:
        InputError: a mistake in what the user gave.
    """
    subcommand, options = arguments[0], arguments[1:]
    # `predict IMAGE --help` has a help of its own, and a word that follows --help is a class.
    if asks_for_help(options) and (not options or options[0].startswith("-") or subcommand == "validate"):
        print_help(subcommand, options)
        return
    from bnfree.lightning_modules.command.packed import names_packed_network, run_test
    from bnfree.lightning_modules.command.predict import names_images, refuse_options_of_images, run_predict

    if subcommand == "predict" and names_images(options):
        run_predict(arguments)
        return
    if subcommand == "predict":
        refuse_options_of_images(options)
    if subcommand == "test" and names_packed_network(options):
        run_test(arguments)
        return
    from bnfree.lightning_modules.training.evaluate import evaluate
    from bnfree.lightning_modules.training.settings import EvaluateSettings

    words = tuple("--help" if option == ALL else option for option in options)
    evaluate(EvaluateSettings(arguments=words, part=subcommand))
