"""`bnfree runs`: what lies below a folder, in what state, and how it goes on."""

import csv
import json
import shlex

import pytest

from bnfree.lightning_modules.training.run_directory import only_one


@pytest.fixture
def runs(project, bnfree):
    """Two runs of one recipe, which differ in the learning rate."""
    for name, rate in (("fast", "0.05"), ("slow", "0.01")):
        code, _, err = bnfree("fit", "--config=toy.yaml", f"--run_dir=runs/toy/{name}", f"--model.optimizer.lr={rate}")
        assert code == 0, err
    return project / "runs" / "toy"


def listed(bnfree, *arguments):
    code, out, err = bnfree("runs", *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def test_says_what_sets_each_apart_and_what_it_has_reached(runs, bnfree):
    fast, slow = listed(bnfree)
    assert (fast["directory"], slow["directory"]) == ("runs/toy/fast", "runs/toy/slow")
    for run, rate in ((fast, "0.05"), (slow, "0.01")):
        assert (run["state"], run["epochs"], run["max_epochs"], run["test"]) == ("finished", 2, 2, None)
        assert rate in run["difference"]
        with (runs.parents[1] / run["directory"] / "metrics.csv").open() as file:
            assert run["best"] == max(float(row["val/acc"]) for row in csv.DictReader(file) if row["val/acc"])
        assert shlex.split(run["command"])[:2] == ["bnfree", "test"]
    code, out, _ = bnfree("runs")
    assert code == 0
    assert [line.split()[:3] for line in out.splitlines()[-2:]] == [
        ["runs/toy/fast", "finished", "2/2"],
        ["runs/toy/slow", "finished", "2/2"],
    ]


def test_the_command_of_an_interrupted_run_goes_on_with_it(runs, bnfree):
    code, _, _ = bnfree("fit", "--config=toy.yaml", "--run_dir=runs/toy/third", "--trainer.callbacks.fail=true")
    assert code == 2
    # As a killed process leaves it: no mark, and epochs that are missing.
    (runs / "slow" / ".finished").unlink()
    config = runs / "slow" / "config.yaml"
    config.write_text(config.read_text().replace("max_epochs: 2", "max_epochs: 3"))
    (run,) = listed(bnfree, "--state=interrupted")
    assert (run["directory"], run["epochs"], run["max_epochs"]) == ("runs/toy/slow", 2, 3)
    code, _, err = bnfree(*shlex.split(run["command"])[1:])
    assert code == 0, err
    states = {run["directory"]: (run["state"], run["epochs"]) for run in listed(bnfree)}
    assert states["runs/toy/slow"] == ("finished", 3)


def test_a_run_whose_directory_is_held_is_running(runs, bnfree):
    with only_one(runs / "fast"):
        assert [run["state"] for run in listed(bnfree)] == ["running", "finished"]
        assert listed(bnfree)[0]["command"] == ""
    assert [run["state"] for run in listed(bnfree)] == ["finished", "finished"]


def test_no_run(project, complaint):
    assert "FOLDER='runs'" in complaint("runs")
    (project / "empty").mkdir()
    assert "FOLDER='empty' holds no run" in complaint("runs", "empty")
