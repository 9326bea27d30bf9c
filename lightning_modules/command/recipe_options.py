"""The command line of `bnfree recipe`: its own options, options for every stage, and options for one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from bnfree.errors import InputError
from bnfree.lightning_modules.experiments.recipe_file import check_carry


@dataclass(frozen=True)
class RecipeArguments:
    """What the user has asked for."""

    recipe: str
    """The recipe file."""
    run_dir: str | None
    """Where the recipe's run directories go; None: chosen by the recipe's name."""
    stages: list[str] | None
    """Stages to run; None: all."""
    carry: str | None
    """Kind of checkpoint that every stage starts from; None: as the recipe says."""
    options: list[str]
    """Options of `bnfree fit` for every stage and, after `--NAME.`, for one."""

    def of_stage(self, name: str, names: Sequence[str]) -> list[str]:
        """The options for one stage, those of its own last.

        Args:
            name: of the stage.
            names: of all stages.
        """
        shared: list[str] = []
        own: list[str] = []
        target: list[str] | None = shared
        for token in self.options:
            if _is_option(token):
                owner = token.removeprefix("--").partition(".")[0]
                target = own if owner == name else shared if owner not in names else None
                token = f"--{token.removeprefix(f'--{name}.')}" if target is own else token
            if target is not None:
                target.append(token)
        return shared + own


def parse(arguments: Sequence[str]) -> RecipeArguments:
    """Splits what follows `bnfree recipe`.

    Raises:
        InputError: no recipe, an option without its value, or an option that contradicts the recipe.
    """
    if not arguments or _is_option(arguments[0]):
        raise InputError("bnfree recipe wants the recipe file first: bnfree recipe configs/cifar10_recipe.yaml.")
    own: dict[str, str] = {}
    options: list[str] = []
    remaining = iter(arguments[1:])
    for token in remaining:
        name, equals, value = token.partition("=")
        if name == "--ckpt_path" or name.endswith(".ckpt_path"):
            raise InputError(f"{name} is no option of bnfree recipe, which goes on by itself from where it stopped.")
        if name not in ("--run_dir", "--stages", "--carry"):
            options.append(token)
            continue
        value = value if equals else next(remaining, "")
        if not value or (not equals and _is_option(value)):
            raise InputError(f"{name} needs a value.")
        own[name] = value
    carry = own.get("--carry")
    stages = own.get("--stages")
    return RecipeArguments(
        arguments[0],
        own.get("--run_dir"),
        None if stages is None else [name for name in stages.split(",") if name],
        None if carry is None else check_carry(carry, "--carry"),
        options,
    )


def split_configs(options: list[str]) -> tuple[list[str], list[str]]:
    """Separates `--config` options from the others, which configs must come before."""
    configs: list[str] = []
    rest: list[str] = []
    remaining = iter(options)
    for token in remaining:
        name, equals, value = token.partition("=")
        if name in ("--config", "-c"):
            configs.append(f"--config={value if equals else next(remaining, '')}")
        else:
            rest.append(token)
    return configs, rest


def as_options(values: Mapping[str, Any]) -> list[str]:
    """Values by dotted name, as a file gives them, in the form of a command line."""
    options = []
    for key, value in values.items():
        text = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True, width=10**6)
        text = text.removesuffix("\n").removesuffix("\n...")
        options.append(f"--{key}={text}")
    return options


def _is_option(token: str) -> bool:
    return re.match(r"--?[A-Za-z]", token) is not None
