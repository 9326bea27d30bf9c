"""The subcommands of `bnfree`, which are imported when they are asked for."""

from __future__ import annotations

from typing import NamedTuple


class Subcommand(NamedTuple):
    """One line of the help, and the module of this package whose `run(arguments)` does the work.

    `arguments[0]` is the subcommand. An integer that `run` returns is the exit code.
    """

    summary: str
    module: str


# A new subcommand is one line here and one module with a function `run`.
SUBCOMMANDS = {
    "fit": Subcommand("train a network", "command.fit"),
    "validate": Subcommand("evaluate a checkpoint on the validation part", "command.evaluate"),
    "test": Subcommand("evaluate a checkpoint or packed file on the test set", "command.evaluate"),
    "recipe": Subcommand("train the stages of a recipe, one after the other", "command.recipe"),
    "sweep": Subcommand("train a grid of settings, one after the other", "command.sweep"),
    "lottery": Subcommand("find and check lottery tickets", "command.lottery.command"),
    "predict": Subcommand("classes of images, by a checkpoint or packed file", "command.evaluate"),
    "runs": Subcommand("list runs: what differs, how far they are, how they go on", "command.runs"),
    "report": Subcommand("write a table and a figure of runs", "command.report"),
    "export": Subcommand("pack a trained network into a small file", "command.export"),
    "compress": Subcommand("fewer channels in a trained real network, without data", "command.compress"),
    "bench": Subcommand("time a packed file against other engines", "command.bench"),
    "summary": Subcommand("count a network's operations and bits", "command.summary"),
    "analyse": Subcommand("sensitivity of layers, trainability, different features", "command.analyse"),
    "score-data": Subcommand("score training images by how much they teach", "command.analyse"),
    "configs": Subcommand("list the shipped recipes, or copy one to edit", "command.configs"),
    "ticket": Subcommand("compare, stretch, transfer and sign tickets", "command.ticket"),
    "completion": Subcommand("print a script for completion in a shell", "command.completion"),
}
