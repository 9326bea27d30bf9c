"""`fit`, `validate`, `test` and `predict` from the first command to the files."""

import csv
import re

import pytest
import torch
import yaml


def metrics(directory, name):
    with (directory / "metrics.csv").open() as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row.get(name)}


def only_run(project):
    (run,) = (project / "runs" / "toy").iterdir()
    return run


def test_fit_fills_its_run_directory_says_where_and_tests(project, bnfree):
    code, out, err = bnfree("fit", "--config", "toy.yaml", "--test_after_fit=true")
    run = only_run(project)
    assert code == 0
    assert "Tip:" not in out + err
    for line in (
        f"Run directory: runs/toy/{run.name}",
        f"Best checkpoint: runs/toy/{run.name}/checkpoints/best.ckpt (val/acc 0.",
        f"Last checkpoint: runs/toy/{run.name}/checkpoints/last.ckpt",
        f"tensorboard --logdir runs/toy/{run.name}",
        " % (best checkpoint)",
        "epoch 2/2  train/loss ",
    ):
        assert line in out
    assert len(re.findall(r"\d s, [\d,]+ images/s, \d+% waiting for data\)$", out, re.MULTILINE)) == 2
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert list(run.glob("events.out.tfevents.*"))
    assert len(metrics(run, "val/acc")) == 2
    assert metrics(run, "lr-Adam")[4] == pytest.approx(0.025)
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_epochs"] == 2


def test_a_saved_config_repeats_the_run_in_a_directory_of_its_own(project, bnfree):
    bnfree("fit", "--config", "toy.yaml")
    first = only_run(project)
    assert bnfree("fit", "--config", first / "config.yaml")[0] == 0
    (second,) = set((project / "runs" / "toy").iterdir()) - {first}
    assert metrics(first, "train/loss") == metrics(second, "train/loss")


def test_last_checkpoint_is_the_last_epoch_when_the_best_is_earlier(project, bnfree):
    # Nothing is learned, so no later epoch is better than the first.
    bnfree("fit", "--config", "toy.yaml", "--run_dir=run", "--trainer.max_epochs=3", "--model.optimizer.lr=0.0")
    best, last = (torch.load(f"run/checkpoints/{name}.ckpt", weights_only=True) for name in ("best", "last"))
    assert (best["epoch"], last["epoch"]) == (0, 2)


def test_always_on_callbacks_survive_the_users_list_and_can_be_switched_off(project, bnfree):
    assert bnfree("fit", "--config", "toy.yaml", "--run_dir=a", "--trainer.callbacks=EarlyStopping",
                  "--trainer.callbacks.monitor=val/acc", "--best_checkpoint.save_top_k=0")[0] == 0  # fmt: skip
    assert {path.name for path in (project / "a" / "checkpoints").iterdir()} == {"last.ckpt"}


def test_an_overlay_can_add_to_the_callbacks(project, bnfree):
    (project / "more.yaml").write_text("trainer:\n  callbacks+:\n    - class_path: toy_project.ToyCallback\n")
    _, out, _ = bnfree("fit", "--config", "toy.yaml", "--config", "more.yaml", "--print_config")
    assert len(yaml.safe_load(out)["trainer"]["callbacks"]) == 2


def test_without_a_logger_and_in_a_trial_run(project, bnfree):
    assert bnfree("fit", "--config", "toy.yaml", "--run_dir=a", "--trainer.logger=false")[0] == 0
    assert not (project / "a" / "metrics.csv").exists()
    assert bnfree("fit", "--config", "toy.yaml", "--trainer.fast_dev_run=true")[0] == 0
    assert not (project / "runs").exists()


@pytest.mark.parametrize("form", ["run", "file"])
def test_evaluation_needs_the_checkpoint_alone(trained, project, bnfree, form):
    path = trained / "checkpoints" / "best.ckpt"
    if form == "file":
        # Away from its run directory, what the checkpoint itself remembers must do, except for the data.
        path = project / "lone.ckpt"
        path.write_bytes((trained / "checkpoints" / "best.ckpt").read_bytes())
    data = ["--data=toy_project.ToyData"] if form == "file" else []
    files = set(trained.rglob("*"))
    expected = torch.load(path, weights_only=True)["callbacks"]
    (best,) = (state["best_model_score"] for state in expected.values() if state.get("monitor") == "val/acc")
    for subcommand, name in (("validate", "val/acc"), ("test", "test/acc")):
        code, out, _ = bnfree(subcommand, "--ckpt_path", path, *data)
        assert code == 0
        assert name in out
        assert f"{name}: {100 * float(best):.2f} %" in out
    assert files == set(trained.rglob("*"))


def test_predict_writes_a_file(trained, project, bnfree):
    code, out, _ = bnfree("predict", "--ckpt_path", trained / "checkpoints" / "best.ckpt", "--run_dir", "here")
    assert code == 0
    assert "here/predictions.csv" in out
    assert (project / "here" / "predictions.csv").read_text().startswith("image,class,probability\n0,")


def test_best_and_last_are_those_of_the_run_directory(trained, project, bnfree):
    assert bnfree("test", "--ckpt_path=last", "--run_dir", trained)[0] == 0
    assert bnfree("test", "--ckpt_path", "best", "--run_dir", trained)[0] == 0
