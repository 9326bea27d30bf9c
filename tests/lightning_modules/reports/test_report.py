"""`bnfree report` as its user sees it: the table, the groups, where things go and what is refused."""

import re
import statistics
import subprocess
import sys
import time

import pytest
import yaml
from small_runs import STEPS, column, write_metrics, write_recipe, write_run

from bnfree.lightning_modules.reports import run_report

HEADINGS = {
    "best val/acc (%)": lambda run: max(column(run, "val/acc")),
    "last val/acc (%)": lambda run: column(run, "val/acc")[-1],
    "test/acc (%)": lambda run: column(run, "test/acc")[-1],
    "train/acc (%)": lambda run: column(run, "train/acc")[-1],
}


def tables(directory):
    """The tables of report.md: each a list of dicts by heading."""
    blocks = re.findall(r"(?:^\|.*\|\n)+", (directory / "report.md").read_text(), re.MULTILINE)
    found = []
    for block in blocks:
        lines = (re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines())
        heading, _, *rows = [[cell.strip() for cell in line] for line in lines]
        found.append([dict(zip(heading, row, strict=True)) for row in rows])
    return found


def cell_by_hand(values):
    values = [100 * value for value in values]
    if len(values) == 1:
        return f"{values[0]:.2f}"
    singly = ", ".join(f"{value:.2f}" for value in values)
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} ({singly})"


@pytest.fixture
def no_drawing(monkeypatch):
    """A file with the title in place of the figure, which takes a second to draw and has tests of its own."""
    monkeypatch.setattr(run_report, "draw_runs", lambda groups, title: title)
    monkeypatch.setattr(run_report, "save_png", str.encode)


@pytest.fixture
def report(bnfree, project, no_drawing):
    """Runs the command, which must succeed; returns its tables and what it printed."""

    def run(*arguments):
        code, out, err = bnfree("report", *arguments, "--output", "out")
        assert code == 0, err
        return tables(project / "out"), out

    return run


def test_the_table_has_the_figures_of_the_csv_files(project, report):
    runs = {norm: [write_run(f"{norm}-{seed}", seed, base=base, model__backbone__norm=norm) for seed in (2, 0, 1)]
            for norm, base in (("bn_free", 0.4), ("batch_norm", 0.3))}  # fmt: skip
    single = write_run("single", 7, base=0.2, model__backbone__norm="none")
    (results, settings), out = report(*runs["bn_free"], single, *runs["batch_norm"])
    assert [row["runs"] for row in results] == ["norm=bn_free", "norm=none", "norm=batch_norm"]
    assert [row["seeds"] for row in results] == ["0, 1, 2", "7", "0, 1, 2"]
    assert {row["epochs"] for row in results} == {"4"}
    for row, members in zip(results, (runs["bn_free"], [single], runs["batch_norm"]), strict=True):
        in_order = sorted(members, key=lambda run: run.name)
        for heading, value_of in HEADINGS.items():
            assert row[heading] == cell_by_hand([value_of(run) for run in in_order])
    assert settings == [
        {"setting": "`model.backbone.norm`", "norm=bn_free": "`bn_free`", "norm=none": "`none`",
         "norm=batch_norm": "`batch_norm`"}
    ]  # fmt: skip
    best = statistics.mean(100 * max(column(run, "val/acc")) for run in runs["bn_free"])
    assert f"norm=bn_free     3 runs  epochs 4  best val/acc {best:.2f} ± " in out
    assert "out/report.md" in out
    assert "out/report.png" in out
    text = (project / "out" / "report.md").read_text()
    assert "](report.png)" in text
    for link in re.findall(r"\]\(<(.+?)>\)", text):
        assert (project / "out" / link / "metrics.csv").is_file()
    assert len(re.findall(r"\]\(<(.+?)>\)", text)) == 7


def test_what_no_run_has_logged_has_no_column(project, report):
    (with_test, without), _ = report(write_run("a"), write_run("b", test=False, model__backbone__alpha=0.2))[0]
    assert with_test["test/acc (%)"] != "—"
    assert without["test/acc (%)"] == "—"
    assert "test/acc5 (%)" not in without
    assert without["time per run"] == "—"


def test_labels_of_the_user(project, report, complaint):
    runs = [write_run("a", 0), write_run("b", 0, model__backbone__norm="none"), write_run("c", 1)]
    (results, _), _ = report(*runs, "--label", "with", "--label", "with|out", "--title", "Two ways")
    assert [row["runs"] for row in results[:1]] == ["with"]
    text = (project / "out" / "report.md").read_text()
    assert text.startswith("# Two ways\n")
    assert "with\\|out" in text
    said = complaint("report", *runs, "--label", "one")
    assert said.startswith("label is given once, but the runs make 2 groups (norm=bn_free, norm=none);")


def test_a_run_given_twice_counts_once(project, report):
    write_run("a")
    (results,), _ = report("a", project / "a")
    assert [row["seeds"] for row in results] == ["0"]


def test_a_resumed_run_is_known_by_its_latest_config(project, report):
    run = write_run("a", epochs=2)
    longer = yaml.safe_load((run / "config.yaml").read_text())
    longer["trainer"]["max_epochs"] = 9
    (run / "config-resumed-1.yaml").write_text(yaml.safe_dump(longer))
    (results,), _ = report(run)
    assert results[0]["epochs"] == "2 of 9"


def test_a_recipe_has_its_stages_beside_the_final_accuracy(project, report):
    steps = {"step1": {"base": 0.2, "model__backbone__binary_weights": False},
             "step2": {"noise": 9, "model__init_from": "step1/checkpoints/last.ckpt", "epochs": 3}}  # fmt: skip
    recipes = [
        write_recipe(f"{norm}-{seed}", steps, seed=seed, model__backbone__norm=norm)
        for norm in ("bn_free", "none")
        for seed in (0, 1)
    ]
    (results, stages, settings), out = report(*recipes)
    assert [(row["runs"], row["epochs"]) for row in results] == [
        ("norm=bn_free", "4 + 3 of 4"),
        ("norm=none", "4 + 3 of 4"),
    ]
    assert [(row["runs"], row["stage"]) for row in stages] == [
        ("norm=bn_free", "step1"), ("norm=bn_free", "step2"), ("norm=none", "step1"), ("norm=none", "step2"),
    ]  # fmt: skip
    for heading, value_of in HEADINGS.items():
        for number, row in enumerate(results):
            members = recipes[2 * number : 2 * number + 2]
            assert row[heading] == cell_by_hand([value_of(run / "step2") for run in members])
            for stage in stages[2 * number : 2 * number + 2]:
                assert stage[heading] == cell_by_hand([value_of(run / stage["stage"]) for run in members])
    assert [row["setting"] for row in settings] == ["`model.backbone.norm`"]
    assert "  step1: epochs 4  best val/acc " in out


def test_a_recipe_beside_a_run_and_a_stage_that_has_not_begun(project, report):
    recipe = write_recipe("recipe", {"step1": {"model__backbone__binary_weights": False}, "step2": None})
    (results, stages, settings), _ = report(recipe, write_run("run"))
    assert [row["runs"] for row in results] == ["binary_weights=false", "binary_weights=true"]
    assert [row["stage"] for row in stages] == ["step1"]
    assert "no finished epoch yet in step2" in (project / "out" / "report.md").read_text()
    assert {row["setting"] for row in settings} == {"`model.backbone.binary_weights`", "`stages`"}


def test_time_is_read_from_tensorboard(project, report):
    from torch.utils.tensorboard import SummaryWriter

    run = write_run("a")
    for seconds in (100, 25):
        writer = SummaryWriter(run, filename_suffix=f".{seconds}")
        writer.add_scalar("train/loss", 1.0, 0, walltime=time.time() + seconds)
        writer.close()
    (results,), _ = report(run)
    assert results[0]["time per run"] == "2 min 05 s"


def test_where_reports_go(bnfree, project, complaint, no_drawing):
    a, b = write_run("runs/a"), write_run("runs/b", 1)
    assert bnfree("report", a)[0] == 0
    assert (a / "report" / "report.md").is_file()
    assert (a / "report" / "report.png").read_text() == "a"
    assert bnfree("report", a, "--title", "Again")[0] == 0
    assert (a / "report" / "report.md").read_text().startswith("# Again\n")
    assert (a / "report" / "report.png").read_text() == "Again"
    for _ in range(2):
        assert bnfree("report", a, b)[0] == 0
    assert len(list((project / "runs" / "reports").glob("*/report.md"))) == 2
    kept = (a / "report" / "report.md").read_text()
    said = complaint("report", b, "--output", a / "report")
    assert said.endswith("holds report.md of something else than these runs; give another directory with --output.")
    (project / "mine").mkdir()
    (project / "mine" / "report.md").write_text("notes")
    assert "holds report.md of something else" in complaint("report", b, "--output", "mine")
    assert (a / "report" / "report.md").read_text() == kept
    assert (project / "mine" / "report.md").read_text() == "notes"
    # A run and its report, moved together, still belong together.
    (project / "runs").rename(project / "moved--here")
    assert bnfree("report", project / "moved--here" / "a")[0] == 0


def test_it_needs_no_torch(project):
    write_run("a")
    script = (
        "import sys\nfrom bnfree.lightning_modules.cli import main\nassert main(['report', 'a']) == 0\n"
        "assert 'torch' not in sys.modules and 'lightning' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=1200, cwd=project)
    assert run.returncode == 0, run.stderr


def test_a_row_that_is_being_written_does_no_harm(project, report):
    run = write_run("a", epochs=2)
    best = max(column(run, "val/acc"))
    with (run / "metrics.csv").open("a") as file:
        file.write(f",2,{3 * STEPS}")
    (results,), _ = report(run)
    assert results[0]["best val/acc (%)"] == f"{100 * best:.2f}"
    assert results[0]["epochs"] == "2 of 4"


def test_a_training_that_has_diverged_is_reported(project, report):
    nan = float("nan")
    run = write_run("a")
    rows = [{"epoch": e, "step": e, "val/acc": acc, "train/loss": loss, "signs/flipped": 0.0}
            for e, (acc, loss) in enumerate([(0.5, 2.0), (0.1, float("inf")), (0.1, nan)])]  # fmt: skip
    write_metrics(run, rows)
    (results,), _ = report(run)
    assert (results[0]["best val/acc (%)"], results[0]["last val/acc (%)"]) == ("50.00", "10.00")
