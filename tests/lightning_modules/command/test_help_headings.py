"""The help of every subcommand: no heading without anything below it, and none that is no heading."""

import re

import pytest

from bnfree.lightning_modules.cli import SUBCOMMANDS
from bnfree.lightning_modules.command.lottery.command import ACTIONS as LOTTERY
from bnfree.lightning_modules.command.ticket import ACTIONS as TICKET

HELPS = [
    *([name, "--help"] for name in SUBCOMMANDS),
    *([name, "--help-all"] for name in ("fit", "test")),
    *(["lottery", name, "--help"] for name in LOTTERY),
    *(["ticket", name, "--help"] for name in TICKET),
    ["predict", "cat.png", "--help"],
    ["fit", "--config", "quickstart", "--model.help"],
    ["fit", "--config", "quickstart", "--data.help"],
    ["fit", "--help", "ReActNet18"],
]


@pytest.mark.parametrize("words", HELPS, ids=" ".join)
def test_headings_say_something_and_have_something_below_them(bnfree, words):
    code, out, err = bnfree(*words)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    headings = [i for i, line in enumerate(lines) if re.fullmatch(r"\S.*:", line)]
    titles = [lines[i] for i in headings]
    assert len(set(titles)) == len(titles)
    for i in headings:
        assert len(lines[i]) < 118
        assert not lines[i].startswith("<")
        assert next(line for line in lines[i + 1 :] if line).startswith("  ")
    # Each option once.
    options = re.findall(r"^  (--[\w.-]+)", out, re.M)
    assert not words[-1].startswith("--help") or len(set(options)) == len(options)


def test_of_a_class_nothing_but_its_arguments(bnfree):
    _, out, _ = bnfree("fit", "--help", "torch.optim.SGD")
    assert [line for line in out.splitlines() if re.fullmatch(r"\S.*:", line)] == ["arguments:"]
    assert "--help" not in out
