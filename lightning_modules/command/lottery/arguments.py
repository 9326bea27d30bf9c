"""The command line of `bnfree lottery run`: its own options, and those of `bnfree fit` for every level."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from bnfree.errors import InputError


@dataclass(frozen=True)
class LotteryArguments:
    """What the user has asked for."""

    file: str
    """The lottery file."""
    run_dir: str | None
    """Where everything goes; None: chosen by the file's name."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Values that win over those of the file's section `lottery`."""
    options: list[str] = field(default_factory=list)
    """Options of `bnfree fit` for every level."""


def parse(arguments: Sequence[str], command: str = "run") -> LotteryArguments:
    """Splits what follows `bnfree lottery run`.

    Args:
        arguments: the file and its options.
        command: the action, for messages.

    Raises:
        InputError: no file, an option without its value, or an option that the levels' fits choose themselves.
    """
    if not arguments or _is_option(arguments[0]):
        raise InputError(
            f"bnfree lottery {command} wants the lottery file first: bnfree lottery {command} "
            "configs/digits_lottery.yaml."
        )
    changes: dict[str, Any] = {}
    options: list[str] = []
    run_dir = None
    remaining = iter(arguments[1:])
    for token in remaining:
        name, equals, value = token.partition("=")
        if name in ("--ckpt_path", "--seed_everything", "--data.seed"):
            instead = "which goes on by itself from where it stopped" if name == "--ckpt_path" else "give --seeds 0,1,2"
            raise InputError(f"{name} is no option of bnfree lottery {command}: {instead}.")
        if name not in ("--run_dir", "--seeds") and not name.startswith("--lottery."):
            options.append(token)
            continue
        value = value if equals else next(remaining, "")
        if not value or (not equals and _is_option(value)):
            raise InputError(f"{name} needs a value.")
        if name == "--run_dir":
            run_dir = value
        elif name == "--seeds":
            changes["seeds"] = [_value(seed, name) for seed in value.split(",") if seed]
        else:
            changes[name.removeprefix("--lottery.")] = _value(value, name)
    return LotteryArguments(arguments[0], run_dir, changes, options)


def _value(text: str, name: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{name}={text!r} is not YAML; quote what has colons or brackets.") from error


def _is_option(token: str) -> bool:
    return re.match(r"--?[A-Za-z]", token) is not None
