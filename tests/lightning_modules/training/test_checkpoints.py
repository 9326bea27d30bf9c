"""Checkpoints: the user's words beat them, and one that does not fit is refused before anything happens."""

import csv

import pytest
import torch


def rows(directory, name):
    with (directory / "metrics.csv").open() as file:
        return [(int(row["step"]), float(row[name])) for row in csv.DictReader(file) if row.get(name)]


def last(directory):
    return directory / "checkpoints" / "last.ckpt"


def test_the_users_values_win_and_the_difference_is_printed(trained, project, bnfree):
    code, out, _ = bnfree("fit", "--ckpt_path", last(trained), "--run_dir=b", "--trainer.max_epochs=3",
                          "--model.optimizer.lr=0.5", "--model.smoothing=0.1")  # fmt: skip
    assert code == 0
    assert "model.optimizer.lr: 0.5 (the checkpoint was written with 0.05)\n" in out
    assert "model.smoothing: 0.1 (the checkpoint was written with 0.0)\n" in out
    written = torch.load(last(project / "b"), weights_only=True)
    assert written["hyper_parameters"]["smoothing"] == 0.1
    # The third epoch of the schedule, with the new learning rate.
    assert rows(project / "b", "lr-Adam")[-1] == (8, pytest.approx(0.5 * 0.25))


def test_without_changes_nothing_is_printed_and_training_goes_on_exactly(trained, project, bnfree):
    _, out, _ = bnfree("fit", "--ckpt_path", last(trained), "--run_dir=b", "--trainer.max_epochs=4")
    assert "checkpoint was written with" not in out
    bnfree("fit", "--config", "toy.yaml", "--run_dir=whole", "--trainer.max_epochs=4")
    assert rows(project / "b", "train/loss") == rows(project / "whole", "train/loss")
    for (key, resumed), whole in zip(
        torch.load(last(project / "b"), weights_only=True)["state_dict"].items(),
        torch.load(last(project / "whole"), weights_only=True)["state_dict"].values(),
        strict=True,
    ):
        assert torch.equal(resumed, whole), key


def test_resuming_in_place_keeps_rows_and_configs(project, bnfree):
    bnfree("fit", "--config", "toy.yaml", "--run_dir=run")
    config = (project / "run" / "config.yaml").read_text()
    for epochs in (3, 4):
        assert bnfree("fit", "--ckpt_path=last", "--run_dir=run", f"--trainer.max_epochs={epochs}")[0] == 0
    assert [step for step, _ in rows(project / "run", "train/loss")] == [3, 7, 11, 15]
    assert (project / "run" / "config.yaml").read_text() == config
    assert "max_epochs: 4" in (project / "run" / "config-resumed-2.yaml").read_text()


def test_resuming_from_the_best_checkpoint_writes_later_epochs_once(project, bnfree):
    bnfree("fit", "--config", "toy.yaml", "--run_dir=run", "--model.optimizer.lr=0.0")
    bnfree("fit", "--ckpt_path=best", "--run_dir=run", "--trainer.max_epochs=3")
    assert [step for step, _ in rows(project / "run", "train/loss")] == [3, 7, 11]


def test_an_earlier_run_is_not_overwritten(project, bnfree, complaint):
    bnfree("fit", "--config", "toy.yaml", "--run_dir=run")
    files = {path: path.read_bytes() for path in (project / "run").rglob("*") if path.is_file()}
    said = complaint("fit", "--config", "toy.yaml", "--run_dir=run")
    assert said.startswith("run_dir='run' holds an earlier run")
    assert "--ckpt_path=run/checkpoints/last.ckpt" in said
    assert files == {path: path.read_bytes() for path in (project / "run").rglob("*") if path.is_file()}


def test_nothing_left_to_train(trained, project, bnfree):
    code, out, _ = bnfree("fit", "--ckpt_path", last(trained), "--run_dir=b")
    assert code == 0
    assert "raise --trainer.max_epochs" in out
    assert not (project / "b").exists()


def test_another_optimizer_cannot_go_on(trained, project, complaint):
    said = complaint("fit", "--ckpt_path", last(trained), "--model.optimizer=SGD", "--model.optimizer.lr=1")
    assert "model.optimizer=torch.optim.SGD" in said
    assert "--model.init_from" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("--model.backbone.width=5", ["with ToyNet, does not fit", "and 2 more with shape (4,) in place of (5,)"]),
        (
            "--model.backbone=DeepToyNet",
            ["with ToyNet, does not fit ToyModule with DeepToyNet", "lacks 'backbone.more"],
        ),
    ],
)
@pytest.mark.parametrize("subcommand", ["fit", "test"])
def test_another_architecture(trained, project, complaint, subcommand, change, said):
    message = complaint(subcommand, "--ckpt_path", last(trained), change)
    for part in said:
        assert part in message
    assert not (project / "runs").exists()


def damaged(name, trained, project):
    path = project / f"{name}.ckpt"
    whole = last(trained).read_bytes()
    if name == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif name == "empty":
        path.write_bytes(b"")
    elif name == "text":
        path.write_text("not a checkpoint")
    elif name == "weights":
        torch.save({"weight": torch.zeros(2)}, path)
    elif name == "object":
        torch.save({"state_dict": {}, "thing": pytest.approx(1)}, path)
    elif name == "directory":
        path.mkdir()
    return path


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("truncated", "is damaged or incomplete"),
        ("empty", "is damaged or incomplete"),
        ("text", "is damaged or incomplete"),
        ("weights", "holds no training state"),
        ("object", "--weights_only=false"),
        ("directory", "is a directory; give a checkpoint file"),
        ("missing", "does not exist"),
    ],
)
def test_files_that_are_no_checkpoint(trained, project, complaint, name, said, alone):
    path = damaged(name, trained, project)
    config = [] if alone else ["--config", "toy.yaml"]
    message = complaint("fit", "--ckpt_path", path, *config)
    assert f"ckpt_path='{path}'" in message
    assert said in message
    assert not (project / "runs").exists()


def test_a_damaged_last_checkpoint_is_named_and_the_one_before_it_used_on_request(project, bnfree, complaint):
    bnfree("fit", "--config", "toy.yaml", "--run_dir=run", "--trainer.max_epochs=3", "--model.optimizer.lr=0.0")
    content = last(project / "run").read_bytes()
    for damaged in (content[: len(content) // 2], b""):
        last(project / "run").write_bytes(damaged)
        said = complaint("fit", "--run_dir=run", "--ckpt_path=last")
        assert "last.ckpt' cannot be read as a checkpoint: it is damaged or incomplete" in said
        assert "--run_dir=run --ckpt_path=last-good" in said
    _, out, _ = bnfree("fit", "--run_dir=run", "--ckpt_path=last-good")
    assert "Passed over: ckpt_path='run/checkpoints/last.ckpt' cannot be read" in out
    assert "Going on from run/checkpoints/best.ckpt, step 4." in out
    assert torch.load(last(project / "run"), weights_only=True)["global_step"] == 12
    assert [step for step, _ in rows(project / "run", "train/loss")] == [3, 7, 11]


def test_weights_alone_cannot_be_resumed(trained, project, complaint):
    content = torch.load(last(trained), weights_only=True)
    del content["optimizer_states"]
    torch.save(content, project / "weights.ckpt")
    said = complaint("fit", "--config", "toy.yaml", "--ckpt_path", project / "weights.ckpt")
    assert "no optimizer state" in said


def test_a_checkpoint_that_says_nothing_about_its_model(trained, project, complaint):
    content = torch.load(last(trained), weights_only=True)
    del content["hyper_parameters"]
    torch.save(content, project / "mute.ckpt")
    assert "does not say which model it was written by" in complaint("test", "--ckpt_path", project / "mute.ckpt")


def test_best_needs_a_run_directory(project, complaint):
    assert "say of which with --run_dir=RUN" in complaint("test", "--ckpt_path=best")


def test_a_checkpoint_of_the_run_holds_plain_values(trained):
    for name in ("best", "last"):
        content = torch.load(trained / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert content["hyper_parameters"]["_class_path"] == "toy_project.ToyModule"


@pytest.mark.parametrize("version", [3, "x", "", torch.zeros(2), "{class_path: planted.X}"])
def test_a_checkpoint_of_no_release_is_refused(trained, complaint, project, version):
    content = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    torch.save({**content, "pytorch-lightning_version": version}, project / "changed.ckpt")
    assert "ckpt_path='changed.ckpt' was written by no release" in complaint(
        "test", "--config=toy.yaml", "--ckpt_path=changed.ckpt"
    )


@pytest.mark.parametrize("subcommand", ["fit", "test"])
def test_a_checkpoint_that_does_not_say_its_release_is_refused(trained, complaint, project, subcommand):
    content = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    del content["pytorch-lightning_version"]
    torch.save(content, project / "changed.ckpt")
    said = complaint(subcommand, "--config=toy.yaml", "--ckpt_path=changed.ckpt")
    assert said.startswith("ckpt_path='changed.ckpt' has no entry 'pytorch-lightning_version'")
