"""What a value should have been, from the types that the parser has tried."""

from __future__ import annotations

import ast

from bnfree.lightning_modules.compat import EXPECTED_LITERAL, EXPECTED_TYPE, GIVEN_VALUE, NESTED_VALUE
from bnfree.names import did_you_mean

WORDS = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "NoneType": "null",
    "list": "a list",
    "dict": "a mapping",
}


def explain_value(key: str, complaint: str, where: str = "") -> str | None:
    """One sentence for a value of the wrong type or outside of its choices.

    Args:
        key: dotted name of the argument.
        complaint: what the parser says about it.
        where: file and line of the argument, in brackets.
    """
    given = GIVEN_VALUE.search(complaint)
    if given is None:
        return None
    nested = NESTED_VALUE.fullmatch(given[1])
    value = _unquoted(nested[1] if nested else given[1])
    tried = complaint[: given.start()]
    choices: list[str] = []
    for literal in EXPECTED_LITERAL.findall(tried):
        choices += [str(choice) for choice in ast.literal_eval(literal) if str(choice) not in choices]
    expected = [WORDS[name] for name in dict.fromkeys(EXPECTED_TYPE.findall(tried)) if name in WORDS]
    if choices:
        choices += ["true", "false"] if WORDS["bool"] in expected else []
        remedy = did_you_mean(value, choices) or f"choose from {', '.join(choices)}."
        return f"{key}={value!r}{where} is not known; {remedy}"
    if expected:
        # `null` is always the last resort and seldom what was meant.
        expected.sort(key=lambda word: word == "null")
        return f"{key}={value!r}{where} is of the wrong type; give {' or '.join(expected)}."
    return None


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
