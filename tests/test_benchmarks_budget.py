"""`benchmarks/budget.py` at toy size: stopped, started again, and its table."""

import csv
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_data import write_image

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks/budget.py"
ROWS = ["bn_free:w4:40x2", "batch_norm:w4:40x2"]
TOY = [
    "--data.val_split=10", "--data.test_split=10", "--data.batch_size=10", "--data.augment=false",
    "--model.calibration_images=8",
]  # fmt: skip


@pytest.fixture
def budget(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import budget

    return budget


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name in "abcdefghij":
        for number in range(6):
            write_image(folder / f"train/{name}/{number}.png", 32, 32, seed=number)
    return folder


def command(images, output, *options, rows=ROWS):
    arguments = [
        "--data_dir",
        images,
        "--output",
        output,
        "--seeds",
        "0",
        "--exact",
        "--nice",
        "0",
        "--rows",
        *rows,
        *options,
    ]
    return [sys.executable, SCRIPT, *map(str, arguments), "--", *TOY]


def rows_of(output):
    with (output / "rows.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_runs_are_stopped_resumed_and_not_repeated(images, tmp_path):
    output = tmp_path / "runs"
    rows = ["bn_free:w4:40x2", "batch_norm:w4:40x40"]
    process = subprocess.Popen(command(images, output, rows=rows), stdout=subprocess.PIPE, text=True)
    wait_for(lambda: list(output.glob("batch_norm-w4-40x40-*-seed0/checkpoints/last.ckpt")), process)
    (long_run,) = output.glob("batch_norm-w4-40x40-*-seed0/")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=1200)
    assert process.returncode
    wait_for(lambda: not running(long_run))
    assert [line["row"] for line in rows_of(output)] == ["bn_free:w4:40x2"]
    epochs = len(column(long_run, "val/acc"))
    assert 0 < epochs < 40

    # What has finished is not run again, so it may be gone.
    (short_run,) = output.glob("bn_free-w4-40x2-*-seed0/")
    shutil.rmtree(short_run)
    figure = tmp_path / "figure.png"
    again = subprocess.run(command(images, output, "--figure", figure, rows=rows), capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert not short_run.exists()
    first, second = rows_of(output)
    assert (second["row"], second["presentations"], second["fast"]) == ("batch_norm:w4:40x40", "1600", "none")
    assert second["options"].startswith("--data.val_split=10")
    # Resumed, not started anew: every epoch was validated once.
    assert len(column(long_run, "val/acc")) == 40
    assert float(second["test"]) == pytest.approx(100 * column(long_run, "test/acc")[-1], abs=0.005)
    assert f"| 0: {float(first['test']):.2f} |" in again.stdout
    assert f"| 0: {float(second['test']):.2f} |" in again.stdout
    assert figure.stat().st_size > 5000


@pytest.mark.slow
def test_a_failed_run_is_said_and_has_no_line(images, tmp_path):
    bad = [*command(images, tmp_path / "runs", rows=["bn_free:w4:1000x1"])]
    result = subprocess.run(bad, capture_output=True, text=True)
    assert result.returncode == 1
    assert "failed, see" in result.stdout
    (log,) = tmp_path.glob("runs/bn_free-w4-1000x1-*-seed0.log")
    assert "limit_train" in log.read_text()
    assert not (tmp_path / "runs/rows.csv").exists()


def test_names_of_rows_are_read_as_they_are_written(budget):
    for name in [*budget.ROWS, "bn_free:w8:100x2:ste:lr=2e-3", "none:w8:100x2:lr=1e-2"]:
        assert str(budget.Row.parse(name)) == name
    row = budget.Row.parse("reference:w16:36000x14:sigmoid")
    assert row.presentations == 504_000
    assert {"--model.backbone.reference=true", "--data.limit_train=36000"} <= set(row.arguments())
    for name in ["bn_free", "bn_free:w16", "batchnorm:w16:10x1", "bn_free:16:10"]:
        with pytest.raises(SystemExit, match="is not NORM"):
            budget.Row.parse(name)


def test_the_table_compares_equal_seeds(budget):
    def line(row, seed, test, options=""):
        return {"row": row, "seed": str(seed), "test": str(test), "options": options}

    lines = [line("bn_free:w16:10x6", 0, 60), line("bn_free:w16:10x6", 1, 62), line("batch_norm:w16:10x6", 0, 57.5)]
    lines += [line("bn_free:w16:10x24", 0, 70), line("bn_free:w16:10x6:ste", 1, 61)]
    lines += [line("bn_free:w16:10x6", 0, 63, "--a=b"), line("batch_norm:w16:10x6", 0, 58, "--a=b")]
    _, _, *rows = budget.table(lines).splitlines()
    assert rows == [
        "| 16 | 10 x 6 | 60 | `bn_free` | 0: 60.00, 1: 62.00 | 61.00 | +2.50 (1 of 2 seeds) |",
        "| 16 | 10 x 6 | 60 | `bn_free` `--a=b` | 0: 63.00 | 63.00 | +5.50 |",
        "| 16 | 10 x 6 | 60 | `bn_free` ste | 1: 61.00 | 61.00 |  |",
        "| 16 | 10 x 6 | 60 | `batch_norm` | 0: 57.50 | 57.50 |  |",
        "| 16 | 10 x 6 | 60 | `batch_norm` `--a=b` | 0: 58.00 | 58.00 | +0.50 |",
        "| 16 | 10 x 24 | 240 | `bn_free` | 0: 70.00 | 70.00 |  |",
    ]


def test_a_row_with_other_options_is_another_run(budget, tmp_path):
    class Recorder(budget.Runner):
        folders = []

        def _fit(self, row, seed, folder, lock):
            self.folders.append(folder)
            return 1

    rows = tmp_path / "rows.csv"
    run = budget.Row.parse("bn_free:w4:40x2"), 0
    budget.append(
        rows, {**dict.fromkeys(budget.COLUMNS, ""), "row": "bn_free:w4:40x2", "seed": "0", "options": "--a=b"}
    )
    for options in (["--a=b"], ["--a=c"], []):
        Recorder("data", tmp_path, rows, (), options, 0).run_all([run], 1)
    assert len(set(Recorder.folders)) == len(Recorder.folders) == 2


def test_lines_are_appended_below_one_header(budget, tmp_path):
    line = dict.fromkeys(budget.COLUMNS, "1")
    for _ in range(2):
        budget.append(tmp_path / "new/rows.csv", line)
    assert budget.read(tmp_path / "new/rows.csv") == [line, line]


def column(run, name):
    with (run / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def running(run):
    """Whether some process has the run's folder in its command."""
    lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return any(f"--run_dir={run}" in line for line in lines)


def wait_for(condition, process=None, seconds=1200):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        assert process is None or process.poll() is None
        time.sleep(0.1)
