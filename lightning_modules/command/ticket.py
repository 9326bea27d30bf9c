"""`bnfree ticket`: finds the action, which lies in a module of its own."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from bnfree.lightning_modules.command.actions import Action, run_action


def _action(usage: str, summary: str, module: str) -> Action:
    name = usage.split()[0]

    def run(options: Sequence[str]) -> int:
        # After the manual, which answers without torch.
        from bnfree.lightning_modules.compat import leave_out_messages

        leave_out_messages("ticket")
        found = importlib.import_module(f"bnfree.lightning_modules.command.{module}")
        code: int = getattr(found, f"run_{name}")([name, *options])
        return code

    return Action(usage, summary, run)


# A new action is one line here and one function `run_<action>` of the module it names.
ACTIONS = {
    action.usage.split()[0]: action
    for action in (
        _action("info TICKET", "what it is and where it comes from, layer by layer", "ticket_looking"),
        _action("diff A B", "what two tickets have in common, against chance", "ticket_looking"),
        _action("stretch TICKET", "for a deeper network: blocks are copied", "ticket_changing"),
        _action("squeeze TICKET", "for a shallower network: blocks are dropped", "ticket_changing"),
        _action("transfer TICKET", "for other images and classes", "ticket_changing"),
        _action("sign TICKET", "put an owner's mark into the masks", "ticket_owning"),
        _action("verify TICKET", "look for an owner's mark; exit code 0 found, 1 not found", "ticket_owning"),
        _action("triggers SOURCE", "claim a network by its answers to an owner's images", "ticket_owning"),
        _action("key new|split|join", "an owner's key; a ticket in two parts", "ticket_owning"),
    )
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
        The exit code: 0, and 1 where `verify` or `triggers` has not found what was claimed.

    Raises:
        InputError: a mistake in what the user gave.
    """
    code: int = run_action(arguments, ACTIONS, HELP)
    return code
