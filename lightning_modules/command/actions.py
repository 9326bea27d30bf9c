"""Subcommands that have actions, such as `bnfree lottery run`: their list, and finding the one that was meant."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from bnfree.errors import InputError
from bnfree.names import did_you_mean


class Action(NamedTuple):
    """A line of the list of actions, and what does the work, called with what follows the action's name."""

    usage: str
    summary: str
    run: Callable[[Sequence[str]], Any]


def run_action(arguments: Sequence[str], actions: Mapping[str, Action], manual: str) -> Any:
    """Runs the action that a command line names, or prints the manual, in which `{actions}` is their list.

    Args:
        arguments: the subcommand, the action and its options.
        actions: the actions by name.
        manual: what `--help` prints.

    Returns:
        What the action returns; 0 after the manual.

    Raises:
        InputError: an action that is not known, or what the action raises.
    """
    subcommand = arguments[0]
    if len(arguments) < 2 or arguments[1] in ("-h", "--help", "help"):
        width = max(len(action.usage) for action in actions.values())
        lines = (f"  {action.usage:<{width}}  {action.summary}" for action in actions.values())
        print(manual.format(actions="\n".join(lines)), end="")
        return 0
    name, known = arguments[1], ", ".join(actions)
    if name in actions:
        return actions[name].run(arguments[2:])
    if name.startswith("-"):
        raise InputError(f"{name!r} stands before the action; give one of {known} first, then its options.")
    remedy = did_you_mean(name, actions) or f"choose from {known}."
    raise InputError(f"action {name!r} of bnfree {subcommand} is not known; {remedy}")
