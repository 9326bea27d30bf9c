"""The words of a command line: an action's own options, and the rest, which is for `bnfree fit`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import yaml

from bnfree.errors import InputError

OptionParser = Callable[[str, str], Any]
"""Makes a value of an option's text; called with the text and the option's name, for messages."""


def is_option(word: str) -> bool:
    """Whether a word is an option; a negative number is none."""
    return re.match(r"--?[A-Za-z]", word) is not None


def asks_for_help(words: Sequence[str]) -> bool:
    """Whether an action is to print its manual: `--help` somewhere, or nothing at all."""
    return not words or bool({"-h", "--help"} & set(words))


def take_first(words: Sequence[str], command: str, what: str, example: str) -> tuple[str, list[str]]:
    """Splits off what a command is about, which stands before all options.

    Args:
        words: what follows the command.
        command: such as `bnfree recipe`.
        what: such as `the recipe file`.
        example: a value of it.

    Raises:
        InputError: an option, or nothing, stands there.
    """
    if not words or words[0].startswith("-"):
        raise InputError(f"{command} wants {what} first: {command} {example}.")
    return words[0], list(words[1:])


def take_options(
    words: Sequence[str],
    known: Mapping[str, OptionParser],
    command: str = "",
    refused: Mapping[str, str] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Splits a command line into the values of an action's own options, and all other words in their order.

    Options have the forms `--name value` and `--name=value`; of one that is given twice the last counts.

    Args:
        words: what follows the action.
        known: parser of each option, by its name, `--name`; `*` stands for anything, as in `--lottery.*`.
        command: for messages, such as `bnfree lottery run`.
        refused: names of options that `bnfree fit` has and this command has not, likewise, and what to do instead.

    Returns:
        The values by name, and the rest.

    Raises:
        InputError: an option without its value or with a wrong one, or one that is refused.
    """
    values: dict[str, Any] = {}
    rest: list[str] = []
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        name, equals, text = word.partition("=")
        if instead := _matching(name, refused or {}):
            raise InputError(f"{name} is no option of {command}: {instead}.")
        parser = _matching(name, known)
        if parser is None or not is_option(name):
            rest.append(word)
            continue
        if not equals and remaining and not is_option(remaining[0]):
            text = remaining.pop(0)
        values[name] = parser(text, name)
    return values, rest


def _matching(name: str, patterns: Mapping[str, Any]) -> Any:
    return next((value for pattern, value in patterns.items() if fnmatchcase(name, pattern)), None)


def as_text(text: str, name: str) -> str:
    """The text itself.

    Raises:
        InputError: there is none.
    """
    if not text:
        raise InputError(f"{name} needs a value.")
    return text


def as_names(text: str, name: str) -> list[str]:
    """The parts of a list like `a,b`.

    Raises:
        InputError: there is no text.
    """
    return [part.strip() for part in as_text(text, name).split(",") if part.strip()]


def as_yaml(text: str, name: str) -> Any:
    """The value that a text is in YAML.

    Raises:
        InputError: it is none, or there is no text.
    """
    try:
        return yaml.safe_load(as_text(text, name))
    except yaml.YAMLError as error:
        raise InputError(f"{name}={text!r} is not YAML; quote what has colons or brackets.") from error


def as_number(text: str, name: str) -> float:
    """A number.

    Raises:
        InputError: it is none.
    """
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{name} {text!r} must be a number.") from None


def as_whole_number(text: str, name: str) -> int:
    """A whole number.

    Raises:
        InputError: it is none.
    """
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{name} {text!r} must be a whole number.") from None


def as_numbers(text: str, name: str) -> tuple[int, ...]:
    """The whole numbers of a list with ranges, `1-3,5`: each once, ascending.

    Raises:
        InputError: something else stands there.
    """
    example = "such as 1-3,5"
    numbers: list[int] = []
    for part in filter(None, as_text(text, name).replace(" ", "").split(",")):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise InputError(f"{name}={text!r} must be numbers and ranges, {example}.")
        numbers += range(int(match[1]), int(match[2] or match[1]) + 1)
    if not numbers:
        raise InputError(f"{name}={text!r} names none; give numbers and ranges, {example}.")
    return tuple(sorted(set(numbers)))
