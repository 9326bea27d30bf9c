"""`bnfree configs`: the shipped recipes, and a copy of one to edit."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path

from bnfree.errors import InputError
from bnfree.lightning_modules.training.config.shipped import (
    copy_config,
    description,
    shipped_configs,
    shipped_plugins,
)
from bnfree.names import did_you_mean

HELP = """usage: bnfree configs
       bnfree configs copy NAME [TO]

Lists the recipes and plugins that are installed with bnfree, by the name that --config, bnfree recipe and bnfree
lottery take in any directory. A file of that name in the working directory wins over them.

  copy NAME [TO]   writes one to NAME.yaml, or to another file or directory, to be edited

  bnfree fit --config quickstart
  bnfree configs copy quickstart mine.yaml && bnfree fit --config mine.yaml
"""


def run(arguments: Sequence[str]) -> None:
    """Lists the recipes or copies one.

    Args:
        arguments: `configs` and what follows.

    Raises:
        InputError: a mistake in what the user gave.
    """
    words = list(arguments[1:])
    if {"-h", "--help"} & set(words):
        print(HELP, end="")
    elif not words or words == ["list"]:
        print(_listing())
    elif words[0] != "copy":
        remedy = did_you_mean(words[0], ["copy", "list"]) or "give nothing, or copy NAME [TO]."
        raise InputError(f"bnfree configs does not know {words[0]!r}; {remedy}")
    elif len(words) not in (2, 3):
        raise InputError("bnfree configs copy wants the name of a recipe and, if you like, a file: copy NAME [TO].")
    else:
        print(f"Written: {copy_config(*words[1:])}")


def _listing() -> str:
    plugins = shipped_plugins()
    recipes = {name: path for name, path in shipped_configs().items() if name not in plugins}
    width = max(map(len, (*recipes, *plugins))) + 2
    title = (
        "One plugin over any recipe, as in bnfree fit --config quickstart --config NAME; docs/plugins.md compares them:"
    )
    return "\n".join([*_lines(recipes, width), "", title, *_lines(plugins, width)])


def _lines(configs: dict[str, Path], width: int) -> list[str]:
    columns = max(shutil.get_terminal_size((120, 24)).columns, width + 40)
    return [
        textwrap.fill(
            description(path), columns, initial_indent=name.ljust(width), subsequent_indent=" " * width,
            break_on_hyphens=False,
        )
        for name, path in configs.items()
    ]  # fmt: skip
