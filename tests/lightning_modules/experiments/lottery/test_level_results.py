"""Kinds of levels: their words, their order, and which are controls."""

from bnfree.lightning_modules.experiments.lottery.level_results import is_control, kind_order, kind_title
from bnfree.plugins import BUILT_IN

TICKETS = ("dense", "ticket", "early_bird", "multi_prize")


def test_whatever_is_no_ticket_is_a_control():
    assert not any(is_control(kind) for kind in TICKETS)
    assert all(is_control(kind) for kind in (*BUILT_IN["control"], "my_controls.HalfSigns"))


def test_controls_stand_between_the_ticket_and_those_found_otherwise():
    kinds = ["multi_prize", "b.Mine", "a.Mine", "reinit", "random_layerwise", "ticket", "early_bird", "dense"]
    assert sorted(kinds, key=kind_order) == [
        "dense", "ticket", "random_layerwise", "reinit", "a.Mine", "b.Mine", "early_bird", "multi_prize",
    ]  # fmt: skip


def test_a_kind_in_words_imports_nothing_that_a_file_names():
    assert kind_title("shuffle_signs") == "shuffled signs"
    assert kind_title("no_such_module.HalfSigns") == "half signs"
    assert kind_title("early_bird") == "early-bird ticket"
