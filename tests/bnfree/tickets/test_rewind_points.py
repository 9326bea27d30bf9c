"""Moments of training by their notation."""

import pytest

from bnfree.errors import InputError
from bnfree.tickets import RewindPoint


@pytest.mark.parametrize(
    ("text", "step"), [("init", 0), ("0it", 0), ("500it", 500), ("2ep", 80), ("3%", 30), ("0.1%", 1), ("2.5 %", 25)]
)
def test_step_that_a_point_lies_before(text, step):
    assert RewindPoint.parse(text).step(steps_per_epoch=40, total=1000) == step


def test_steps_and_epochs_need_no_end():
    assert RewindPoint.parse("3ep").step(7, float("inf")) == 21
    with pytest.raises(InputError, match="length is not known"):
        RewindPoint.parse("3%").step(7, float("inf"))


@pytest.mark.parametrize("text", ["init", "500it", "2ep", "3%", "0.5%"])
def test_written_as_it_is_read(text):
    assert str(RewindPoint.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("late", "'late' is not known"),
        ("-1ep", "not known"),
        (500, "500 is not known"),
        ("1.5ep", "whole number of epochs"),
        ("100%", "below 100%"),
    ],
)
def test_what_is_no_point(text, said):
    with pytest.raises(InputError, match=said):
        RewindPoint.parse(text)


@pytest.mark.parametrize("text", ["10ep", "400it"])
def test_points_behind_the_end(text):
    with pytest.raises(InputError, match="does not lie before the end of training, which takes 400 steps"):
        RewindPoint.parse(text).step(40, 400)
