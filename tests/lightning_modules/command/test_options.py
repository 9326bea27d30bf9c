"""Own options and the rest of a command line."""

import pytest

from bnfree.errors import InputError
from bnfree.lightning_modules.command.options import (
    as_names,
    as_number,
    as_numbers,
    as_text,
    as_whole_number,
    as_yaml,
    asks_for_help,
    take_first,
    take_options,
)


def test_both_forms_are_taken_and_all_else_keeps_its_order():
    words = ["--a", "1", "--b=x", "--run", "dir", "--other.c", "-3", "--lottery.rate=0.5", "--a=2"]
    known = {"--a": as_whole_number, "--run": as_text, "--lottery.*": as_yaml}
    values, rest = take_options(words, known)
    assert values == {"--a": 2, "--run": "dir", "--lottery.rate": 0.5}
    assert rest == ["--b=x", "--other.c", "-3"]


def test_negative_numbers_are_values_and_options_are_none():
    assert take_options(["--a", "-3"], {"--a": as_whole_number}) == ({"--a": -3}, [])
    with pytest.raises(InputError, match="--a needs a value"):
        take_options(["--a", "--b"], {"--a": as_text})
    with pytest.raises(InputError, match="--a needs a value"):
        take_options(["--a="], {"--a": as_text})


def test_refused_options_say_what_to_do_instead():
    refused = {"--seed": "give --seeds", "*.ckpt_path": "it goes on by itself"}
    with pytest.raises(InputError, match=r"--seed is no option of bnfree x: give --seeds\."):
        take_options(["--seed=3"], {}, "bnfree x", refused)
    with pytest.raises(InputError, match=r"--step1\.ckpt_path is no option of bnfree x: it goes on"):
        take_options(["--step1.ckpt_path", "a"], {}, "bnfree x", refused)


def test_what_comes_first():
    assert take_first(["file", "--a"], "bnfree x", "the file", "a.yaml") == ("file", ["--a"])
    for words in ([], ["--a", "file"]):
        with pytest.raises(InputError, match=r"bnfree x wants the file first: bnfree x a\.yaml\."):
            take_first(words, "bnfree x", "the file", "a.yaml")
    assert [asks_for_help(words) for words in ([], ["a", "-h"], ["--help"], ["a"])] == [True, True, True, False]


@pytest.mark.parametrize(
    ("parser", "text", "value"),
    [
        (as_names, "a, b,,c", ["a", "b", "c"]),
        (as_numbers, "3,1-2,2", (1, 2, 3)),
        (as_number, "0.5", 0.5),
        (as_yaml, "[0.5, a]", [0.5, "a"]),
    ],
)
def test_values(parser, text, value):
    assert parser(text, "--x") == value


@pytest.mark.parametrize(
    ("parser", "text", "said"),
    [
        (as_numbers, "2-1", "--x='2-1' must be numbers and ranges"),
        (as_numbers, ",", "names none"),
        (as_number, "half", "--x 'half' must be a number"),
        (as_whole_number, "", "--x '' must be a whole number"),
        (as_yaml, "[", "is not YAML"),
    ],
)
def test_wrong_values(parser, text, said):
    with pytest.raises(InputError, match=said.replace("[", r"\[")):
        parser(text, "--x")
