"""`bnfree lottery`: finds the action, which lies in a module of its own."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import NamedTuple

from bnfree.errors import InputError
from bnfree.names import did_you_mean


class Action(NamedTuple):
    """What an action does, and the module whose `run(arguments)` does it; `arguments[0]` is the action."""

    usage: str
    summary: str
    module: str


# A new action is one line here and one module with a function `run`.
ACTIONS = {
    "run": Action("run FILE", "train dense, then prune, rewind and train again, level by level", "run"),
    "controls": Action("controls DIR", "random masks, fresh weights and shuffled signs beside the tickets", "controls"),
    "early-bird": Action("early-bird FILE", "train dense until the mask has settled, then its ticket", "early_bird"),
    "report": Action("report DIR", "tables and figures of a run", "report"),
}
HELP = """usage: bnfree lottery ACTION ...

Looks for lottery tickets: small parts of a network that, put back to an early moment of training, train as well as the
whole network does.

actions:
{actions}

Examples:
  bnfree lottery run configs/digits_lottery.yaml
  bnfree lottery controls runs/digits_lottery
  bnfree lottery report runs/digits_lottery

Help on an action: bnfree lottery ACTION --help
"""


def run(arguments: Sequence[str]) -> None:
    """Runs one action.

    Args:
        arguments: `lottery`, the action and its options.

    Raises:
        InputError: a mistake in what the user gave.
    """
    if len(arguments) < 2 or arguments[1] in ("-h", "--help", "help"):
        width = max(len(action.usage) for action in ACTIONS.values())
        lines = (f"  {action.usage:<{width}}  {action.summary}" for action in ACTIONS.values())
        print(HELP.format(actions="\n".join(lines)), end="")
        return
    name = arguments[1]
    if name not in ACTIONS:
        remedy = did_you_mean(name, ACTIONS) or f"choose from {', '.join(ACTIONS)}."
        raise InputError(f"action {name!r} of bnfree lottery is not known; {remedy}")
    importlib.import_module(f"bnfree.lightning_modules.command.lottery.{ACTIONS[name].module}").run(arguments[1:])
