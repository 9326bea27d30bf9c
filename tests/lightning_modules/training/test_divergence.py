"""Trainings whose numbers go wrong: what the command says, what it leaves, and its exit code."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from bnfree.callbacks.non_finite_step import replay
from bnfree.errors import NonFiniteError
from bnfree.lightning_modules import FitSettings, fit
from bnfree.lightning_modules.training.parsed_fit import parse_fit

ROOT = Path(__file__).parents[3]
NETWORK = """\
model:
  class_path: bnfree.lightning_modules.ImageClassifier
  init_args:
    backbone:
      class_path: bnfree.backbones.ReActNet18
      init_args: {num_classes: 10, in_channels: 1, width: 2}
    optimizer: {class_path: torch.optim.Adam, init_args: {lr: 0.01}}
    calibration_images: 16
data:
  class_path: bnfree.datamodules.DigitsDataModule
  init_args: {batch_size: 16, limit_train: 64, val_split: 32}
trainer:
  max_epochs: 3
  accelerator: cpu
  log_every_n_steps: 2
  enable_model_summary: false
test_after_fit: true
"""
SPOIL = '''

class Spoil(Callback):
    """Ruins a weight before a step."""

    def __init__(self, step: int = 0, rank: int = 0):
        self.step, self.rank = step, rank

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            next(pl_module.parameters()).data.view(-1)[0] = float("nan")
'''
SLOW_FILES = """

class WritesLate(Callback):
    def setup(self, trainer, pl_module, stage):
        save = checksums.save
        if trainer.global_rank == 1:
            checksums.save = lambda *arguments: (time.sleep(5), save(*arguments))
"""
HUGE = "--model.optimizer.lr=1e9"


@pytest.fixture
def digits(project):
    (project / "network.yaml").write_text(NETWORK)
    (project / "spoiling.py").write_text(f"from lightning.pytorch import Callback\n{SPOIL}")
    return project


def answer(result):
    code, _, err = result
    assert code == 3
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("bnfree: error: ")]
    return line


def test_a_learning_rate_that_is_far_too_high(digits, bnfree):
    line = answer(bnfree("fit", "--config", "network.yaml", HUGE, "--run_dir=run"))
    assert "training has diverged at step " in line
    assert "backbone." in line
    assert "there is no checkpoint yet; lower the learning rate (it was " in line
    assert not list((digits / "run").glob("checkpoints/*"))
    kept = torch.load("run/non_finite.pt", weights_only=True)
    assert kept["seed"] == "0"
    assert all(bool(value.isfinite().all()) for value in kept["state_dict"].values())
    # As the documentation has it.
    module = parse_fit(FitSettings("run/config.yaml")).build_model()
    found = replay("run/non_finite.pt", module)
    assert str(found) in line


def test_the_last_good_checkpoint_is_kept_and_named(digits, bnfree):
    spoil = ["--trainer.callbacks=spoiling.Spoil", "--trainer.callbacks.step=5"]
    line = answer(bnfree("fit", "--config", "network.yaml", "--run_dir=run", *spoil))
    assert "step 5 (epoch 1, batch 1; loss nan): the weights of backbone.stem.convolution.weight are not finite" in line
    assert "checkpoints/last.ckpt; lower" in line or "checkpoints/best.ckpt; lower" in line
    for name in ("best", "last"):
        checkpoint = torch.load(f"run/checkpoints/{name}.ckpt", weights_only=True)
        assert checkpoint["epoch"] == 0
        assert all(bool(value.isfinite().all()) for value in checkpoint["state_dict"].values())
    with (digits / "run" / "metrics.csv").open() as file:
        assert len([row for row in csv.DictReader(file) if row.get("val/acc")]) == 1


def test_steps_are_left_out_by_choice(digits, bnfree):
    skip = ["--trainer.callbacks=NonFiniteStop", "--trainer.callbacks.action=skip", "--trainer.callbacks.most_skips=3"]
    line = answer(bnfree("fit", "--config", "network.yaml", HUGE, *skip))
    assert "(4 steps in a row were left out)" in line


def test_in_python(digits):
    with pytest.raises(NonFiniteError, match="diverged at step"):
        fit(FitSettings("network.yaml", {"model.optimizer.lr": 1e9}, run_dir="run"))


def test_without_it_a_network_of_nans_is_neither_best_nor_right(digits, bnfree):
    off = ["--trainer.callbacks=NonFiniteStop", "--trainer.callbacks.action=off"]
    code, out, _ = bnfree("fit", "--config", "network.yaml", HUGE, "--run_dir=run", *off)
    assert code == 0
    assert "test/acc: 0.00 %" in out
    with (digits / "run" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("val/acc")]
    assert {(row["val/acc"], row["val/loss"]) for row in rows} == {("0.0", "nan")}


@pytest.mark.slow
def test_a_stage_of_a_recipe_that_diverges(digits, bnfree):
    stages = {"step1": {"config": "network.yaml"}, "step2": {"config": "network.yaml", "options": {HUGE[2:-4]: 1e9}}}
    (digits / "recipe.yaml").write_text(yaml.safe_dump({"stages": stages}))
    assert "diverged at step" in answer(bnfree("recipe", "recipe.yaml"))
    assert (digits / "runs" / "recipe" / "step1" / "checkpoints" / "best.ckpt").is_file()
    assert not (digits / "runs" / "recipe" / "step2" / "checkpoints").exists()


@pytest.mark.slow
def test_a_level_of_a_lottery_that_diverges(digits, bnfree):
    settings = {"config": "network.yaml", "lottery": {"densities": [0.5], "seeds": [0]}}
    (digits / "lottery.yaml").write_text(yaml.safe_dump(settings))
    spoil = ["--trainer.callbacks=spoiling.Spoil", "--trainer.callbacks.step=5"]
    assert "step 5" in answer(bnfree("lottery", "run", "lottery.yaml", *spoil))


@pytest.mark.slow
def test_a_student_that_diverges(digits, bnfree):
    assert bnfree("fit", "--config", "network.yaml", "--run_dir=teacher", "--trainer.max_epochs=1")[0] == 0
    student = yaml.safe_load(NETWORK)
    student["model"]["class_path"] = "bnfree.lightning_modules.DistilledClassifier"
    teacher = {"network": student["model"]["init_args"]["backbone"], "weights": "teacher/checkpoints/best.ckpt"}
    student["model"]["init_args"] |= {"teacher": teacher}
    (digits / "student.yaml").write_text(yaml.safe_dump(student))
    assert "the first layer whose output" in answer(bnfree("fit", "--config", "student.yaml", HUGE))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_all_processes_stop_together(digits, rank):
    spoil = ["--trainer.callbacks=spoiling.Spoil", "--trainer.callbacks.step=3", f"--trainer.callbacks.rank={rank}"]
    imports = "import time\nfrom bnfree import checksums\nfrom lightning.pytorch import Callback\n"
    (digits / "late.py").write_text(imports + SLOW_FILES)
    spoil += ["--trainer.callbacks+=late.WritesLate"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "bnfree", "fit", "--config", "network.yaml", "--run_dir=run", "--trainer.strategy=ddp",
         "--trainer.devices=2", *spoil], cwd=digits, env=environment, capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert run.returncode == 3, run.stderr
    lines = [line for line in run.stderr.splitlines() if line.startswith("bnfree: error: ")]
    assert len(lines) == 1, run.stderr
    assert lines[0].startswith("bnfree: error: training has diverged at step 3 ")
    assert "the weights of backbone.stem.convolution.weight are not finite" in run.stderr
    assert (digits / "run" / "non_finite.pt").is_file()
    assert (digits / "run" / "non_finite_rank1.pt").is_file() == (rank == 1)
