"""`bnfree runs`: the runs below a folder, a line each, and how those go on that have been interrupted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from bnfree.lightning_modules.command.parsing import ActionParser
from bnfree.lightning_modules.reports.run_list import STATES, ListedRun, list_runs
from bnfree.text_tables import columns

DESCRIPTION = """\
Lists the runs below a folder: state, epochs, accuracies, and the settings that set each apart from those beside it.

A run is `running` while a command holds its directory, on this machine or on another one with the same file system.
Below the table, the commands that resume what has been interrupted."""
EXAMPLES = """\
  bnfree runs
  bnfree runs runs/quickstart --state interrupted
  bnfree runs --json"""


def run(arguments: Sequence[str]) -> None:
    """Lists runs.

    Args:
        arguments: `runs` and its options.

    Raises:
        InputError: a mistake in what the user gave.
    """
    options = _parser().parse_args(arguments[1:])
    found = [one for one in list_runs(options.folder) if options.state in (None, one.state)]
    if options.json:
        print(json.dumps([{**asdict(one), "directory": str(one.directory)} for one in found], indent=1))
        return
    if not found:
        print(f"No {options.state} run in {options.folder}.")
        return
    rows = [["run", "state", "epochs", "best", "test", "what differs"], *map(_row, found)]
    print("\n".join(columns(rows, left=2, width=None)))
    for one in found:
        if one.state == "interrupted":
            print(f"\n{one.directory} goes on with:\n  {one.command}")


def _row(run: ListedRun) -> list[str]:
    accuracies = ("" if value is None else f"{100 * value:.2f} %" for value in (run.best, run.test))
    of = f"/{run.max_epochs}" if run.max_epochs is not None else ""
    return [str(run.directory), run.state, f"{run.epochs}{of}", *accuracies, run.difference]


def _parser() -> ActionParser:
    parser = ActionParser("bnfree runs", DESCRIPTION, EXAMPLES)
    parser.add_argument("folder", nargs="?", default="runs", metavar="FOLDER", help="where to look (default: runs)")
    parser.add_argument("--state", choices=STATES, help="only runs in this state")
    parser.add_argument("--json", action="store_true", help="everything that is known of them, as JSON")
    return parser
