"""`bnfree validate`, `test` and `predict`: of a checkpoint, the last two also of a packed file."""

from __future__ import annotations

from collections.abc import Sequence

from bnfree.lightning_modules.command.packed import names_packed_network, run_predict, run_test

HELP = {
    "test": """Of a packed network:

  bnfree test network.safetensors --config RUN/config.yaml [--engine NAME] [--threads N]

Of a checkpoint:
""",
    "predict": """With a packed network, on image files (more: bnfree predict FILE --help):

  bnfree predict [--model] FILE|NAME IMAGE... [--output predictions.csv]

With a checkpoint, on the test images of its data:
""",
}


def run(arguments: Sequence[str]) -> None:
    """Runs one of the three.

    Args:
        arguments: subcommand and options.

    Raises:
        InputError: a mistake in what the user gave.
    """
    subcommand, options = arguments[0], arguments[1:]
    if subcommand in HELP and names_packed_network(options):
        (run_test if subcommand == "test" else run_predict)(arguments)
        return
    from bnfree.lightning_modules.training.evaluate import evaluate
    from bnfree.lightning_modules.training.settings import EvaluateSettings

    if subcommand in HELP and {"-h", "--help"} & set(options):
        print(HELP[subcommand])
    evaluate(EvaluateSettings(arguments=tuple(options), part=subcommand))
