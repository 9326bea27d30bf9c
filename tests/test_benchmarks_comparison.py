"""`benchmarks/comparison.py`: which rows there are, and what the tables say of runs."""

from pathlib import Path

import pytest

from bnfree.plugins import names

ROOT = Path(__file__).parents[1]


@pytest.fixture
def comparison(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import comparison

    return comparison


def write_run(folder, accuracies):
    folder.mkdir(parents=True)
    lines = ["epoch,val/acc", *(f"{epoch},{accuracy}" for epoch, accuracy in enumerate(accuracies))]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")


def test_every_plugin_of_a_kind_is_a_row(comparison):
    rows = comparison.rows("sign_estimator")
    assert set(rows) == set(names("sign_estimator")) - {"approx"}
    assert rows["ste"] == ["--model.backbone.estimator=ste"]
    assert rows["reste"] == ["--config=reste"]
    assert comparison.rows("data")["cutout"] == ["--config=cutout"]


def test_every_overlay_of_a_plugin_is_compared_or_named_as_one_that_is_not(comparison):
    compared = {name for kind in comparison.TITLES for name in comparison.rows(kind)}
    overlays = {path.stem for path in (ROOT / "configs/plugins").glob("*.yaml")}
    assert overlays - compared == comparison.NOT_COMPARED


def test_tables_compare_equal_seeds_and_leave_out_what_has_not_finished(comparison, tmp_path):
    for seed, accuracy in ((0, 0.50), (1, 0.54)):
        write_run(comparison.folder_of(tmp_path, "", "default", seed), [0.1, 0.2, 0.3, accuracy])
    write_run(comparison.folder_of(tmp_path, "sign_estimator", "ste", 1), [0.1, 0.2, 0.3, 0.57])
    write_run(comparison.folder_of(tmp_path, "sign_estimator", "reste", 0), [0.1, 0.2])
    (tmp_path / "costs.csv").write_text("kind,name,time,memory\nsign_estimator,ste,1.02,1.00\n")
    rows = [line for line in comparison.tables(["sign_estimator", "head"], [0, 1], tmp_path).splitlines() if line]
    assert rows[0] == "## Sign estimators"
    assert rows[3:] == [
        "| default | 50.0 / 54.0 | 52.0 |  | 1 | 1 |  |",
        "| ste | 57.0 | 57.0 | +3.0 | 1.02x | 1.00x | `--model.backbone.estimator=ste` |",
    ]


def test_figures_of_runs_made_elsewhere_count_until_there_is_a_run(comparison, tmp_path):
    (tmp_path / "rows.csv").write_text("run,accuracy\ndefault-seed0,53.25\nhead-cosine-seed0,48.5\n")
    assert comparison.finished(tmp_path / "head-cosine-seed0") == 48.5
    assert comparison.finished(tmp_path / "head-cosine-seed1") is None
    assert "| cosine | 48.5 | 48.5 | -4.8 |" in comparison.tables(["head"], [0, 1], tmp_path)
    write_run(tmp_path / "head-cosine-seed0", [0.1, 0.2])
    assert comparison.finished(tmp_path / "head-cosine-seed0") is None
