"""`bnfree sweep`: the grid, going on, what is refused before anything is trained, and its report."""

import csv
import fcntl
import os
import statistics
import sys
from unittest import mock

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from bnfree.errors import InputError
from bnfree.lightning_modules import FitSettings, ReportSettings, SweepSettings, report, run_sweep
from bnfree.lightning_modules.cli import main
from bnfree.lightning_modules.command.sweep import sweep_table
from bnfree.lightning_modules.experiments.sweep_file import label
from bnfree.lightning_modules.experiments.sweep_grid import run_name
from bnfree.lightning_modules.reports.run_list import list_runs

OVER = ["--over", "model.optimizer.lr=1e-3,0.1", "--over", "seed_everything=0,1"]
SHORT = ["--trainer.max_epochs=1", "--test_after_fit=true"]
NAMES = [f"lr={rate}-seed={seed}" for rate in ("1e-3", "0.1") for seed in (0, 1)]


@pytest.fixture(scope="module")
def finished(place_of_module):
    """The working directory of a sweep of two rates and two seeds; not to be changed."""
    with mock.patch.dict(os.environ), mock.patch.object(sys, "path", list(sys.path)), pytest.MonkeyPatch.context() as m:
        m.chdir(place_of_module)
        assert main(["sweep", "toy.yaml", *OVER, *SHORT]) == 0
    return place_of_module


def weights(directory):
    return torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def values(directory, name):
    with (directory / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def changed(directory):
    return {path.parts[-3]: path.stat().st_mtime_ns for path in directory.glob("lr=*/checkpoints/last.ckpt")}


def test_each_run_is_what_fit_makes_of_its_values(finished, bnfree, project):
    sweep = finished / "runs" / "toy-sweep"
    assert sorted(path.name for path in sweep.iterdir() if path.is_dir()) == sorted(NAMES)
    options = ["--model.optimizer.lr=0.1", "--seed_everything=1", "--run_dir=fit"]
    assert bnfree("fit", "--config=toy.yaml", *options, *SHORT)[0] == 0
    assert same(weights(project / "fit"), weights(sweep / "lr=0.1-seed=1"))
    assert not same(weights(project / "fit"), weights(sweep / "lr=0.1-seed=0"))
    written = yaml.safe_load((sweep / "sweep.yaml").read_text())["runs"]
    assert list(written) == NAMES
    assert written[NAMES[1]] == {"model.optimizer.lr": "1e-3", "seed_everything": "1"}


def test_again_it_trains_nothing_and_prints_mean_and_spread(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished)
    before = changed(finished / "runs" / "toy-sweep")
    assert main(["sweep", "toy.yaml", *OVER, *SHORT]) == 0
    output = capsys.readouterr().out
    assert changed(finished / "runs" / "toy-sweep") == before
    assert f"Run {NAMES[3]} (4 of 4) has finished" in output
    lines = output.partition("Sweep directory")[2].splitlines()
    assert lines[1].split() == ["lr", "runs", "best", "val/acc", "test/acc"]
    means = {}
    for line, rate in zip(lines[2:4], ("1e-3", "0.1"), strict=True):
        runs = [finished / "runs" / "toy-sweep" / f"lr={rate}-seed={seed}" for seed in (0, 1)]
        best = [100 * max(values(run, "val/acc")) for run in runs]
        test = [100 * values(run, "test/acc")[-1] for run in runs]
        means[rate] = statistics.mean(best)
        cells = [f"{statistics.mean(x):.2f} ± {statistics.stdev(x):.2f} %" for x in (best, test)]
        assert line.split() == [rate, "2", *" ".join(cells).split()]
    assert lines[4] == f"Best on validation images: lr={max(means, key=means.get)}"


def test_the_report_is_a_table_of_what_is_varied(finished, monkeypatch):
    monkeypatch.chdir(finished)
    found = report(ReportSettings("runs/toy-sweep"))
    assert [group.label for group in found.groups] == ["lr=1e-3", "lr=0.1"]
    assert [len(group.runs) for group in found.groups] == [2, 2]
    assert found.path.parent.parent.name == "toy-sweep"
    assert "| lr=0.1 | 0, 1 | 1 |" in found.path.read_text()
    # More runs make it anew.
    file = finished / "runs" / "toy-sweep" / "sweep.yaml"
    text = file.read_text()
    file.write_text(text + "  lr=9-seed=0: {model.optimizer.lr: '9', seed_everything: '0'}\n")
    assert "lr=9-seed=0: no finished epoch." in report(ReportSettings("runs/toy-sweep")).path.read_text()
    file.write_text(text)
    with pytest.raises(InputError, match="give it alone"):
        report(ReportSettings(["runs/toy-sweep", f"runs/toy-sweep/{NAMES[0]}"]))


class StopIn(Callback):
    """Ends the training of one run in the middle of an epoch."""

    def __init__(self):
        self.step = 6

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise RuntimeError("stopped")


@pytest.mark.slow
def test_interrupted_it_goes_on_to_the_same_weights(bnfree, project, monkeypatch):
    from bnfree.lightning_modules.training import default_callbacks as defaults

    words = ["sweep", "toy.yaml", *OVER[:2], "--trainer.max_epochs=2"]
    assert bnfree(*words, "--run_dir=whole")[0] == 0
    original, stop, names = defaults.default_callbacks, StopIn(), ["lr=1e-3", "lr=0.1"]
    monkeypatch.setattr(
        "bnfree.lightning_modules.training.command_line.default_callbacks",
        lambda options, on, place: [*original(options, on, place), *([stop] if place.name == names[1] else [])],
    )
    with pytest.raises(RuntimeError, match="stopped"):
        bnfree(*words)
    sweep = project / "runs" / "toy-sweep"
    first = changed(sweep)
    assert sorted(first) == sorted(names)
    (listed,) = [run for run in list_runs(project / "runs") if run.state == "interrupted"]
    assert listed.command == "the bnfree sweep command that started it, again"
    stop.step = -1
    assert bnfree(*words)[0] == 0
    assert changed(sweep)[names[0]] == first[names[0]]
    for name in names:
        assert same(weights(sweep / name), weights(project / "whole" / name))


@pytest.mark.slow
def test_values_are_added_and_a_run_that_diverges_does_not_stop_the_others(bnfree, project):
    fit = FitSettings("toy.yaml", {"trainer.max_epochs": 1})
    with mock.patch.object(sys, "path", [str(project), *sys.path]):
        one = run_sweep(SweepSettings(fit, {"model.optimizer.lr": [1e30]}, run_dir="grid"))
        result = run_sweep(SweepSettings(fit, {"model.optimizer.lr": [1e30, 0.1]}, run_dir="grid"))
    assert "not finite" in one.runs[0].result.diverged
    assert one.best() is None
    assert [run.directory.name for run in result.runs] == ["lr=1.0e+30", "lr=0.1"]
    assert [run.result == one.runs[0].result for run in result.runs] == [True, False]
    assert result.best().values == {"model.optimizer.lr": "0.1"}
    assert sweep_table(result).splitlines()[2].split() == ["1.0e+30", "1", "diverged", "—"]
    text = (project / "grid" / "lr=1.0e+30" / "finished.yaml").read_text()
    assert yaml.safe_load(text)["diverged"] == one.runs[0].result.diverged


def test_overlays_are_varied_and_options_have_one_value_together():
    over = {"config": ["batch_norm", "none"], "seed_everything,data.seed": [0, 1]}
    settings = SweepSettings(FitSettings("quickstart", {"trainer.max_epochs": 1}, ["--data.augment=false"]), over)
    assert [label(values) for values in settings.combinations()] == ["config=batch_norm"] * 2 + ["config=none"] * 2
    fit = settings.fit_of(settings.combinations()[3])
    assert fit.configs == ["quickstart", "none"]
    assert fit.arguments == ["--data.augment=false", "--seed_everything=1", "--data.seed=1"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "over names nothing that is varied"),
        (["--over=model.optimizer.lr"], "names no values"),
        (["--over=model.optimizer.lr="], "has no value"),
        (["--over=model.optimizer.lr=1,1"], "has a value twice (1, 1)"),
        (["--over=a=1", "--over=a=2"], "--over a is given twice"),
        (["--over=model.optimizer.lr=1,2", "--model.optimizer.lr=3"], "and given besides; leave one of them out"),
        (["--over=seed_everything,data.seed=0,1", "--over=data.init_args.seed=3"], "and given besides"),
        (["--over=run_dir=a,b"], "'run_dir' cannot be varied"),
        (["--over=trainer.max_epochs=1,x"], "run 'max_epochs=x': "),
        (["--over=model.smoothing=0,2"], "run 'smoothing=2': smoothing=2.0 must be at most 1"),
        (["--over=trainer.devices=1,2"], "trainer.devices differs between the runs"),
        (["--over=config=toy,tyo"], "run 'config=tyo': config='tyo' does not exist"),
        (["--over=trainer.max_epochs=1,2", "--ckpt_path=x"], "no option of bnfree sweep"),
    ],
)
def test_mistakes_are_found_before_anything_is_trained(complaint, project, words, said):
    assert said in complaint("sweep", "toy.yaml", *words)
    assert not (project / "runs").exists()


def test_other_settings_do_not_mix_with_earlier_ones(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished)
    assert main(["sweep", "toy.yaml", *OVER, "--trainer.max_epochs=3", "--test_after_fit=true"]) == 2
    assert f"run '{NAMES[0]}' has been started" in capsys.readouterr().err


def test_two_commands_do_not_share_a_directory(complaint, project):
    (project / "here").mkdir()
    with (project / "here" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        said = complaint("sweep", "toy.yaml", "--over=trainer.max_epochs=1", "--run_dir=here")
    assert "in use by another command" in said


def test_names_of_runs_differ_where_values_do():
    def name(*given):
        return run_name({"model.backbone.fast": given[0], "data.fast": given[1] if given[1:] else "1"})

    assert name("8", "2") == "backbone.fast=8-data.fast=2"
    long = [name("[int8_forward,bf16_backward]"), name("[int8_forward,bf16_backward_]"), name("a/b"), name("a_b")]
    assert len(set(long)) == 4
    assert all("/" not in one and len(one) < 230 for one in [*long, run_name({f"o{i}": "x" * 30 for i in range(20)})])
