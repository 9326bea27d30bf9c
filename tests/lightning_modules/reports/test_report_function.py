"""`report` in Python: of runs and of lotteries, the same as the commands write and print."""

import csv
import statistics

import pytest
from lottery_runs import write_lottery
from small_runs import column, write_recipe, write_run

from bnfree.errors import InputError
from bnfree.lightning_modules import ReportSettings, report


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def test_runs_are_reported_as_by_the_command(bnfree, project):
    runs = [write_run(f"run{seed}", seed, base=0.3 + 0.1 * seed) for seed in (0, 1)]
    recipe = write_recipe("recipe", {"step1": {"model__backbone__alpha": 0.7}})
    found = report(ReportSettings([*runs, recipe], "python", title="Both", labels=("two seeds", "a recipe")))
    code, out, err = bnfree(
        "report", *runs, recipe, "--output=command", "--title=Both", "--label=two seeds", "--label=a recipe"
    )
    assert code == 0, err
    assert contents(project / "python") == contents(project / "command")
    assert [found.path.name, *(path.name for path in found.figures)] == ["report.md", "report.png"]
    assert [group.label for group in found.groups] == ["two seeds", "a recipe"]
    best = [max(column(run, "val/acc")) for run in runs]
    summary = found.groups[0].accuracies()["best val/acc"]
    assert (summary.values, summary.mean) == (best, pytest.approx(statistics.mean(best)))
    assert summary.std == pytest.approx(statistics.stdev(best))
    assert found.rows[0]["seeds"] == "0, 1"
    assert found.rows[0]["best val/acc (%)"] == summary.percent()
    for row in found.rows:
        assert f"| {' | '.join(row.values())} |" in found.path.read_text()
    assert f"best val/acc {summary.percent(singly=False)} %" in out


def test_one_run_needs_no_list(project):
    found = report(ReportSettings(write_run("run")))
    assert found.path == project / "run" / "report" / "report.md" or found.path.samefile("run/report/report.md")
    assert len(found.groups) == 1


@pytest.mark.slow
def test_a_lottery_is_reported_as_by_its_command(bnfree, tmp_path):
    ours, theirs, third = (
        write_lottery(tmp_path / place / "lot", (0.5,), (0, 1), ("reinit",)) for place in ("python", "command", "both")
    )
    found = report(ReportSettings(ours, tolerance=0.02))
    _, out, _ = bnfree("lottery", "report", theirs, "--tolerance=0.02")
    assert contents(ours) == contents(theirs)
    assert {path.name for path in (found.path, *found.figures, *found.tables)} == set(contents(ours)) - {"lottery.yaml"}
    with (ours / "levels.csv").open(newline="") as file:
        levels = list(csv.DictReader(file))
    ticket = next(group for group in found.groups if group.kind == "ticket")
    assert ticket.accuracy("test").values == [float(row["test_acc"]) for row in levels if row["kind"] == "ticket"]
    assert [row["kind"] for row in found.rows] == ["dense", "ticket", "re-initialised"]
    assert list(found.verdicts) == [line for line in out.splitlines() if line in found.verdicts]
    assert len(found.verdicts) == 1
    # The command for runs knows a lottery when it sees one.
    code, again, err = bnfree("report", third, "--tolerance=0.02")
    assert code == 0, err
    assert again.replace(str(third), str(theirs)) == out
    assert contents(third) == contents(theirs)


def test_a_control_of_the_users_own_counts_as_one(tmp_path):
    directory = write_lottery(tmp_path / "lot", (0.5,), (0,), ("reinit",))
    for mark in directory.glob("seed_0/controls/reinit/*/finished.yaml"):
        mark.write_text(mark.read_text().replace("kind: reinit", "kind: my_control"))
    found = report(ReportSettings(directory))
    assert [(group.name, group.is_control) for group in found.groups] == [
        ("dense", False), ("ticket", False), ("my control", True),
    ]  # fmt: skip
    assert found.rows[2]["ticket's lead (points)"] != "—"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"directories": []}, "names none"),
        ({"directories": ["lot", "run"]}, "is a lottery run, which has a report of its own"),
        ({"directories": "lot", "title": "A title"}, "title goes with runs"),
        ({"directories": "lot", "tolerance": 1.5}, "tolerance=1.5 must be a share"),
        ({"directories": "lot", "tolerance": float("nan")}, "must be a share"),
        ({"directories": "nothing"}, "does not exist"),
        ({"directories": ["run"], "labels": ["a", "b"]}, "label is given twice"),
    ],
)
def test_settings_that_do_not_go_together(project, settings, said):
    write_run("run")
    write_lottery(project / "lot", ())
    before = contents(project / "lot")
    with pytest.raises(InputError, match=said):
        report(ReportSettings(**settings))
    assert contents(project / "lot") == before
    assert not (project / "run" / "report").exists()
