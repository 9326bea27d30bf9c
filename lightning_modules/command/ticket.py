"""`bnfree ticket`: finds the action, which lies in a module of its own."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import NamedTuple

from bnfree.errors import InputError
from bnfree.names import did_you_mean


class Action(NamedTuple):
    """What an action does, and the module whose `run_<action>(arguments)` does it; `arguments[0]` is the action."""

    usage: str
    summary: str
    module: str


# A new action is one line here and one function `run_<action>`.
ACTIONS = {
    "info": Action("info TICKET", "what it is and where it comes from, layer by layer", "ticket_looking"),
    "diff": Action("diff A B", "what two tickets have in common, against chance", "ticket_looking"),
    "stretch": Action("stretch TICKET", "for a deeper network: blocks are copied", "ticket_changing"),
    "squeeze": Action("squeeze TICKET", "for a shallower network: blocks are dropped", "ticket_changing"),
    "transfer": Action("transfer TICKET", "for other images and classes", "ticket_changing"),
    "sign": Action("sign TICKET", "put an owner's mark into the masks", "ticket_owning"),
    "verify": Action("verify TICKET", "look for an owner's mark; exit code 0 found, 1 not found", "ticket_owning"),
    "key": Action("key new|split|join", "an owner's key; a ticket in two parts", "ticket_owning"),
}
HELP = """usage: bnfree ticket ACTION ...

Looks at tickets, and makes other tickets of them. A ticket is one file: masks of a pruned network, the weights that
training starts from again, and how it was found. `bnfree lottery run` writes them.

actions:
{actions}

info, diff and verify take checkpoints of a pruned network too. The others write a new ticket to --output, and never
over a file that is there, unless --overwrite is given. A ticket is trained with --model.init_from, and evaluated with
bnfree test --ckpt_path.

Examples:
  bnfree ticket info ticket.pt
  bnfree ticket stretch ticket.pt --blocks_per_stage 6,6,6,6 --output deeper.pt
  bnfree fit --config configs/cifar10_step2.yaml --model.backbone.blocks_per_stage=[6,6,6,6] --model.init_from=deeper.pt

Options of an action: bnfree ticket ACTION --help
"""


def run(arguments: Sequence[str]) -> int:
    """Runs an action.

    Args:
        arguments: `ticket`, the action and what follows.

    Returns:
        The exit code: 0, and 1 where `verify` has not found what was claimed.

    Raises:
        InputError: a mistake in what the user gave.
    """
    if len(arguments) < 2 or arguments[1] in ("-h", "--help", "help"):
        width = max(len(action.usage) for action in ACTIONS.values())
        lines = (f"  {action.usage:<{width}}  {action.summary}" for action in ACTIONS.values())
        print(HELP.format(actions="\n".join(lines)), end="")
        return 0
    name = arguments[1]
    if name not in ACTIONS:
        known = ", ".join(ACTIONS)
        if name.startswith("-"):
            raise InputError(f"{name!r} stands before the action; give one of {known} first, then its options.")
        raise InputError(
            f"action {name!r} of ticket is not known; {did_you_mean(name, ACTIONS) or f'choose from {known}.'}"
        )
    # After the manual, which answers without torch.
    from bnfree.lightning_modules.compat import leave_out_messages

    leave_out_messages(arguments[0])
    module = importlib.import_module(f"bnfree.lightning_modules.command.{ACTIONS[name].module}")
    code: int = getattr(module, f"run_{name}")(arguments[1:])
    return code
