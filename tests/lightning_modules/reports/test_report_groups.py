"""Which runs `bnfree report` takes together, and what it calls them."""

import pytest
from small_runs import write_run

from bnfree.lightning_modules.reports.run_groups import compare_runs
from bnfree.lightning_modules.reports.runs import read_run


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ([{}, {"seed": 1}, {"seed": 2, "data__num_workers": 0, "data_dir": "/elsewhere/digits"}], []),
        ([{}, {"seed": 1, "model__optimizer__lr": 0.001}], ["lr=0.005", "lr=0.001"]),
        ([{}, {"seed": 1, "data_dir": "data/letters"}], ["data_dir=digits", "data_dir=letters"]),
        ([{}, {"seed": 1, "trainer__callbacks": []}], ["AdaptiveGradientClipping", "no AdaptiveGradientClipping"]),
        ([{"model__init_from": "a/last.ckpt"}, {"seed": 1, "model__init_from": "b/last.ckpt"}], []),
        ([{}, {"seed": 1, "model__init_from": "b/best.ckpt"}], ["init_from=null", "init_from=best"]),
        ([{}, {"model__backbone__binary_weights": False}], ["binary_weights=true", "binary_weights=false"]),
        # Whoever is told one of three factors takes it for the cause.
        (
            [{}, {"model__backbone__norm": "none", "model__optimizer__lr": 0.001, "trainer__max_epochs": 5}],
            ["norm=bn_free, lr=0.005, max_epochs=4", "norm=none, lr=0.001, max_epochs=5"],
        ),
        # Of four the network says more than what was chosen for it.
        (
            [
                {},
                {
                    "model__backbone__norm": "none",
                    "model__optimizer__lr": 0.001,
                    "trainer__max_epochs": 5,
                    "data_dir": "data/letters",
                },
            ],
            ["norm=bn_free", "norm=none"],
        ),
        # What most of them have goes without saying.
        (
            [{}, {"model__backbone__norm": "none"}, {"model__optimizer__lr": 0.1}, {"seed": 1}],
            ["norm=bn_free", "norm=none", "lr=0.1"],
        ),
        # A seed that comes twice: the configs do not tell what the others have in common.
        ([{}, {}, {"seed": 1}], ["run0", "run1", "run2"]),
    ],
)
def test_groups_and_labels(tmp_path, changes, label):
    runs = [read_run(write_run(tmp_path / f"run{index}", **change)) for index, change in enumerate(changes)]
    assert [group.label for group in compare_runs(runs).groups] == (label or [f"{len(runs)} seeds"])


def test_groups_come_in_the_order_of_the_command_line_and_their_runs_in_that_of_their_seeds(tmp_path):
    names = {"b1": (1, "none"), "a2": (2, "bn_free"), "b0": (0, "none"), "a10": (10, "bn_free")}
    runs = [
        read_run(write_run(tmp_path / name, seed, model__backbone__norm=norm)) for name, (seed, norm) in names.items()
    ]
    groups = compare_runs(runs).groups
    assert [[run.directory.name for run in group.runs] for group in groups] == [["b0", "b1"], ["a2", "a10"]]


def test_runs_of_the_same_name_are_told_apart_by_their_parents(tmp_path):
    runs = [read_run(write_run(tmp_path / parent / "20260101-120000")) for parent in ("one", "two")]
    assert [group.label for group in compare_runs(runs).groups] == ["one/20260101-120000", "two/20260101-120000"]
