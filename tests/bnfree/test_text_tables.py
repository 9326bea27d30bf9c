"""Tables for a terminal."""

import pytest

from bnfree.text_tables import WIDTH, columns, fields, short_count, table

ROWS = [("name", "a", "longer"), ("x" * 120, "1", "2"), ("short", "30", "4")]


def test_columns_end_or_begin_below_each_other_and_long_names_lose_their_beginning():
    lines = columns(ROWS)
    assert [len(line) for line in lines] == [WIDTH] * 3
    assert lines[1].startswith("...xxx")
    assert [line[-6:] for line in lines] == ["longer", "     2", "     4"]
    left = columns(ROWS, left=3)
    assert {line.index(cell) for line, cell in zip(left, ("longer", "2", "4"), strict=True)} == {WIDTH - 6}
    assert columns(ROWS, width=None)[1].startswith("x" * 120)


def test_a_table_has_rules_around_its_rows():
    lines = table(ROWS[0], ROWS[2:], last=("all", "30", "4")).splitlines()
    assert [line.split() for line in lines] == [["name", "a", "longer"], ["-" * 20], ["short", "30", "4"], ["-" * 20],
                                                ["all", "30", "4"]]  # fmt: skip
    assert table(ROWS[0], ROWS[2:]).count("-" * 20) == 1


def test_long_texts_go_on_below_their_beginning():
    text = " ".join(["word"] * 40)
    lines = fields([("a", text), ("name", "b")]).splitlines()
    assert all(len(line) <= WIDTH for line in lines)
    assert [line[:6] for line in lines] == ["a     ", "      ", "      ", "name  "]
    assert " ".join(line[6:] for line in lines[:3]) == text
    assert fields([("a", "b")], width=9) == "a        b"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (999, "999"), (999.6, "1k"), (36864, "36.9k"), (2.5e6, "2.5M"), (1e15, "1e+03T")]
)
def test_short_counts(count, text):
    assert short_count(count) == text
