"""Trainings and evaluations that are called from Python."""

import csv
import sys

import pytest
import torch
import yaml

from bnfree.errors import InputError
from bnfree.lightning_modules import EvaluateSettings, FitSettings, evaluate, fit
from bnfree.lightning_modules.training.parsed_fit import parse_fit


@pytest.fixture(autouse=True)
def notebook(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])


def rows(file, name):
    with file.open() as lines:
        return [float(row[name]) for row in csv.DictReader(lines) if row.get(name)]


def test_the_result_says_what_the_files_say(project):
    result = fit(FitSettings("toy.yaml", {"test_after_fit": True}, run_dir="run"))
    assert result.finished
    assert result.run_directory == project / "run"
    assert (result.epochs, result.steps) == (2, 8)
    assert result.last_checkpoint == project / "run" / "checkpoints" / "last.ckpt"
    assert result.best_checkpoint == project / "run" / "checkpoints" / "best.ckpt"
    accuracies = rows(project / "run" / "metrics.csv", "val/acc")
    assert result.metrics["val/acc"] == pytest.approx(accuracies[-1])
    # Validation and test images are the same ones.
    assert result.test_metrics["test/acc"] == pytest.approx(max(accuracies))
    last = torch.load(result.last_checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(value, last[name]) for name, value in result.model.state_dict().items())
    assert 0 < result.seconds < 60


def test_a_second_training_has_a_directory_of_its_own_and_a_third_goes_on(project):
    first, second = (fit(FitSettings("toy.yaml")) for _ in range(2))
    assert first.run_directory != second.run_directory
    assert first.metrics["train/loss"] == second.metrics["train/loss"]
    third = fit(FitSettings(options={"trainer.max_epochs": 3}, ckpt_path=second.last_checkpoint, run_dir="third"))
    assert (third.epochs, third.steps) == (3, 12)


def test_options_win_over_configs_and_arguments_over_both(project):
    (project / "wide.yaml").write_text("model: {init_args: {backbone: {init_args: {width: 7}}}}\n")

    def width(**settings):
        model = parse_fit(FitSettings(**settings)).settings["model"]
        assert model["init_args"]["optimizer"]["init_args"]["lr"] == 0.05
        return model["init_args"]["backbone"]["init_args"]["width"]

    option = {"model.backbone.width": 5}
    assert width(configs=("toy.yaml",)) == 4
    assert width(configs=("toy.yaml", "wide.yaml")) == 7
    assert width(configs=("toy.yaml", "wide.yaml"), options=option) == 5
    assert width(configs=["toy.yaml"], options=option, arguments=["--config", "wide.yaml"]) == 5
    assert width(configs=["toy.yaml"], options=option, arguments=["--model.backbone.width", "6"]) == 6


def test_options_are_plain_values_of_every_kind(project):
    callback = {"class_path": "toy_project.ToyCallback", "init_args": {"factor": 2.5}}
    options = {"trainer.callbacks+": [callback], "trainer.limit_val_batches": 0.5, "trainer.accelerator": "cpu",
               "best_checkpoint.filename": None, "trainer.log_every_n_steps": 3, "data.broken": False}  # fmt: skip
    settings = parse_fit(FitSettings("toy.yaml", options)).settings
    assert [c["init_args"]["factor"] for c in settings["trainer"]["callbacks"]] == [1.0, 2.5]
    assert settings["trainer"]["limit_val_batches"] == 0.5
    assert settings["best_checkpoint"]["filename"] is None
    with pytest.raises(InputError, match=r"options\['data.batch_size'\]=.* is not a plain value"):
        fit(FitSettings("toy.yaml", {"data.batch_size": object()}))


@pytest.mark.parametrize(("batches", "steps"), [(1, 1), (2, 2), (0.5, 2), (1.0, 4)])
def test_an_integer_is_a_number_of_batches_and_a_fraction_a_share(project, batches, steps):
    options = {"trainer.limit_train_batches": batches, "trainer.max_epochs": 1}
    result = fit(FitSettings("toy.yaml", options, run_dir="run"))
    assert result.steps == steps
    again = yaml.safe_load((project / "run" / "config.yaml").read_text())["trainer"]["limit_train_batches"]
    assert (again, type(again)) == (batches, type(batches))


def test_mistakes_are_input_errors(project):
    with pytest.raises(InputError, match="did you mean '--trainer.max_epochs'"):
        fit(FitSettings("toy.yaml", {"trainer.max_epoch": 1}))
    with pytest.raises(InputError, match="config='toi.yaml' does not exist; did you mean 'toy.yaml'"):
        fit(FitSettings("toi.yaml"))
    with pytest.raises(InputError, match="model is required and not given"):
        fit(FitSettings())
    with pytest.raises(InputError, match="part='tset' is not known; did you mean 'test'"):
        evaluate(EvaluateSettings("toy.yaml", part="tset"))
    twice = [{"class_path": "bnfree.callbacks.WeightDynamics"}] * 2
    with pytest.raises(InputError, match="holds WeightDynamics twice"):
        fit(FitSettings("toy.yaml", {"trainer.callbacks": twice}))


def test_evaluations_give_metrics_and_predictions(trained, project):
    best, last = (trained / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    accuracies = rows(trained / "metrics.csv", "val/acc")
    assert evaluate(EvaluateSettings(ckpt_path=best)).metrics["test/acc"] == pytest.approx(max(accuracies))
    result = evaluate(EvaluateSettings(ckpt_path=last, part="validate"))
    assert result.metrics == {"val/acc": pytest.approx(accuracies[-1])}
    assert (result.predictions, result.run_directory) == (None, trained)
    result = evaluate(EvaluateSettings(ckpt_path=last, part="predict", run_dir="predicted"))
    assert result.predictions == project / "predicted" / "predictions.csv"
    assert len(rows(result.predictions, "probability")) == 5
    assert result.metrics == {}
