"""`bnfree recipe`: stages, hand-over, going on, and what is refused before anything is trained."""

import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from bnfree.errors import InputError
from bnfree.lightning_modules import FitSettings, RecipeSettings, run_recipe
from bnfree.lightning_modules.cli import main
from bnfree.lightning_modules.experiments.recipe_file import Stage

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
  max_epochs: 1
  accelerator: cpu
  log_every_n_steps: 2
  enable_model_summary: false
"""
RECIPE = """\
stages:
  step1:
    config: network.yaml
    options: {model.backbone.binary_weights: false}
  step2:
    config: network.yaml
    options: {trainer.max_epochs: 2}
"""


@pytest.fixture
def recipe(project):
    (project / "network.yaml").write_text(NETWORK)
    (project / "recipe.yaml").write_text(RECIPE)
    return project / "runs" / "recipe"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Directory of a recipe whose two stages have finished; not to be changed."""
    project = tmp_path_factory.mktemp("finished")
    (project / "network.yaml").write_text(NETWORK)
    (project / "recipe.yaml").write_text(RECIPE)
    assert main(["recipe", str(project / "recipe.yaml"), f"--run_dir={project / 'run'}"]) == 0
    return project


def weights(directory, name="last"):
    return torch.load(directory / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def stage(project, name, **changed):
    content = yaml.safe_load((project / "recipe.yaml").read_text())
    content["stages"][name].update(changed)
    (project / "recipe.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def test_second_stage_is_what_fit_makes_of_the_first_ones_weights(finished, tmp_path):
    for name in ("step1", "step2"):
        assert {"config.yaml", "metrics.csv", "finished.yaml"} <= {p.name for p in (finished / "run" / name).iterdir()}
    start = finished / "run" / "step1" / "checkpoints" / "last.ckpt"
    options = [f"--model.init_from={start}", "--trainer.max_epochs=2", f"--run_dir={tmp_path / 'fit'}"]
    assert main(["fit", f"--config={finished / 'network.yaml'}", *options]) == 0
    assert_same(weights(tmp_path / "fit"), weights(finished / "run" / "step2"))
    config = yaml.safe_load((finished / "run" / "step1" / "config.yaml").read_text())
    assert config["model"]["init_args"]["backbone"]["init_args"]["binary_weights"] is False
    assert list(yaml.safe_load((finished / "run" / "recipe.yaml").read_text())["stages"]) == ["step1", "step2"]


def test_results_name_the_accuracies_of_both_stages(finished, capsys):
    assert main(["recipe", str(finished / "recipe.yaml"), f"--run_dir={finished / 'run'}"]) == 0
    output = capsys.readouterr().out
    assert "epoch" not in output.partition("Recipe directory")[0]
    for name, epochs in (("step1", 1), ("step2", 2)):
        rows = (finished / "run" / name / "metrics.csv").read_text().splitlines()
        column = rows[0].split(",").index("val/acc")
        values = [float(row.split(",")[column]) for row in rows[1:] if row.split(",")[column]]
        assert len(values) == epochs
        line = next(line for line in output.splitlines() if line.startswith(f"{name}  "))
        assert line.split() == [name, str(epochs), f"{values[-1]:.4f}", f"{max(values):.4f}", "-"]


@pytest.mark.slow
def test_from_python_the_same_weights_and_the_accuracies_of_the_table(finished, tmp_path):
    fit = FitSettings(options={"trainer.enable_model_summary": False})
    result = run_recipe(RecipeSettings(finished / "recipe.yaml", run_dir=tmp_path / "run", fit=fit))
    assert list(result.stages) == ["step1", "step2"]
    for line, (name, stage) in zip(result.table().splitlines()[2:], result.stages.items(), strict=True):
        assert_same(weights(tmp_path / "run" / name), weights(finished / "run" / name))
        assert stage.last_checkpoint == tmp_path / "run" / name / "checkpoints" / "last.ckpt"
        assert stage.best_checkpoint.is_file()
        assert line.split() == [name, str(stage.epochs), f"{stage.last:.4f}", f"{stage.best:.4f}", "-"]
        text = (finished / "run" / name / "finished.yaml").read_text()
        assert yaml.safe_load(text) == {"epochs": stage.epochs, "last": stage.last, "best": stage.best, "test": {}}


def test_stages_in_python_and_what_is_refused(finished, tmp_path):
    stages = [Stage("one", ["network.yaml"]), Stage("two", ["network.yaml"], init_from="one")]
    with pytest.raises(InputError, match="'three' is no stage of the recipe"):
        run_recipe(RecipeSettings(stages, run_dir=tmp_path, stage_fits={"three": FitSettings()}))
    with pytest.raises(InputError, match="carry='worst' is not known"):
        run_recipe(RecipeSettings(finished / "recipe.yaml", run_dir=tmp_path, carry="worst"))
    with pytest.raises(InputError, match="fit.run_dir='x' is chosen by the experiment"):
        run_recipe(RecipeSettings(finished / "recipe.yaml", run_dir=tmp_path, fit=FitSettings(run_dir="x")))
    assert [stage.name for stage in RecipeSettings("cifar10_recipe").recipe_stages()] == ["step1", "step2"]
    assert list(tmp_path.iterdir()) == []


class StopIn(Callback):
    """Ends the process's training in the middle of an epoch."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise RuntimeError("stopped")


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 6])
def test_interrupted_stage_goes_on_to_the_same_weights(recipe, bnfree, finished, monkeypatch, step):
    from bnfree.lightning_modules.training import default_callbacks as defaults

    original = defaults.default_callbacks
    stop = StopIn(step)
    monkeypatch.setattr(
        "bnfree.lightning_modules.training.command_line.default_callbacks",
        lambda options, always_on, directory: [
            *original(options, always_on, directory), *([stop] if directory.name == "step2" else []),
        ],
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="stopped"):
        bnfree("recipe", "recipe.yaml")
    assert (recipe / "step1" / "finished.yaml").is_file()
    assert not (recipe / "step2" / "finished.yaml").exists()
    assert (recipe / "step2" / "checkpoints" / "last.ckpt").is_file() is (step == 6)
    first = (recipe / "step1" / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    stop.step = -1
    code, output, _ = bnfree("recipe", "recipe.yaml")
    assert code == 0
    assert "Stage step1 (1 of 2) has finished" in output
    assert (recipe / "step1" / "checkpoints" / "last.ckpt").stat().st_mtime_ns == first
    assert_same(weights(recipe / "step2"), weights(finished / "run" / "step2"))


@pytest.mark.slow
def test_best_checkpoint_can_be_carried_over(recipe, bnfree):
    assert bnfree("recipe", "recipe.yaml", "--carry=best", "--trainer.max_epochs=1")[0] == 0
    config = yaml.safe_load((recipe / "step2" / "config.yaml").read_text())
    assert config["model"]["init_args"]["init_from"] == str(recipe / "step1" / "checkpoints" / "best.ckpt")


@pytest.mark.slow
def test_options_for_all_stages_and_for_one(recipe, bnfree, project):
    (project / "rate.yaml").write_text("model: {init_args: {optimizer: {init_args: {lr: 0.5}}}}\n")
    options = ["--config", "rate.yaml", "--trainer.limit_train_batches=1", "--step2.trainer.max_epochs", "1"]
    options += ["--step1.model.optimizer.lr=0.25", "--trainer.limit_val_batches", "1"]
    assert bnfree("recipe", "recipe.yaml", *options)[0] == 0
    for name, rate in (("step1", 0.25), ("step2", 0.5)):
        config = yaml.safe_load((recipe / name / "config.yaml").read_text())
        assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == rate
        assert config["trainer"]["max_epochs"] == config["trainer"]["limit_val_batches"] == 1


@pytest.mark.slow
def test_checkpoint_of_a_stage_as_a_value(recipe, bnfree, project):
    stage(project, "step2", init_from=None, options={"model.init_from": "{step1.best}", "trainer.max_epochs": 1})
    assert bnfree("recipe", "recipe.yaml")[0] == 0
    config = yaml.safe_load((recipe / "step2" / "config.yaml").read_text())
    assert config["model"]["init_args"]["init_from"] == str(recipe / "step1" / "checkpoints" / "best.ckpt")


@pytest.mark.slow
def test_stages_one_at_a_time(recipe, bnfree, complaint):
    assert "leaves out 'step1'" in complaint("recipe", "recipe.yaml", "--stages=step2")
    assert not recipe.exists()
    code, output, _ = bnfree("recipe", "recipe.yaml", "--stages", "step1")
    assert code == 0
    assert "step2  not finished" in output
    assert bnfree("recipe", "recipe.yaml", "--stages=step2")[0] == 0
    assert (recipe / "step2" / "finished.yaml").is_file()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--step2.trainer.max_epochs=3", "trainer.max_epochs=3, not 2"),
        ("--model.optimizer.lr=0.5", "model.optimizer.lr=0.5, not 0.01"),
        ("--carry=best", "init_from"),
        ("--seed_everything=7", "seed_everything=7, not 0"),
    ],
)
def test_other_settings_do_not_mix_with_a_finished_run(finished, complaint, option, said):
    before = (finished / "run" / "step2" / "checkpoints" / "last.ckpt").read_bytes()
    message = complaint("recipe", str(finished / "recipe.yaml"), f"--run_dir={finished / 'run'}", option)
    assert said in message
    assert "--run_dir" in message
    assert (finished / "run" / "step2" / "checkpoints" / "last.ckpt").read_bytes() == before


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"config": "netwrok.yaml"}, "'netwrok.yaml', which does not exist; did you mean 'network.yaml'"),
        ({"config": "nothing_like_it.txt"}, "'nothing_like_it.txt', which does not exist"),
        ({"options": {"model.backbone.width": 4}}, "step2' cannot start from the weights of 'step1'"),
        ({"options": {"model.backbone.norm": "batch_norm"}}, "step2' cannot start from the weights of 'step1'"),
        ({"options": {"model.backbone.width": 0}}, "stage 'step2': width=0"),
        ({"options": {"model.backbone.widht": 2}}, "stage 'step2'"),
        ({"options": {"trainer.devices": 2}}, "trainer.devices differs between the stages"),
        ({"options": [1]}, "options=[1] must map"),
        ({"init_from": "step0"}, "needs the weights of 'step0'"),
        ({"options": {"model.init_from": "{step1.worst}"}}, "'worst' is not known"),
        ({"carry": "first"}, "carry='first' is not known"),
        ({"cary": "best"}, "no key 'cary'; did you mean 'carry'"),
    ],
)
def test_mistakes_in_a_later_stage_are_found_before_the_first_one_trains(recipe, project, complaint, changed, said):
    stage(project, "step2", **changed)
    assert said in complaint("recipe", "recipe.yaml")
    assert not recipe.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["recipe.yml"], "'recipe.yml' does not exist; did you mean 'recipe.yaml'"),
        (["network.yaml"], "one key stages"),
        (["recipe.yaml", "--stages=step3"], "'step3' is no stage of the recipe; did you mean"),
        (["recipe.yaml", "--carry=worst"], "carry='worst' is not known"),
        (["recipe.yaml", "--run_dir"], "--run_dir needs a value"),
        (["recipe.yaml", "--ckpt_path=x"], "no option of bnfree recipe"),
        (["--stages=step1"], "the recipe file first"),
        (["recipe.yaml", "--trainer.max_epoch=3"], "stage 'step1'"),
    ],
)
def test_mistakes_on_the_command_line(recipe, complaint, arguments, said):
    assert said in complaint("recipe", *arguments)
    assert not recipe.exists()


def test_two_commands_do_not_share_a_directory(recipe, complaint):
    recipe.mkdir(parents=True)
    with (recipe / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "in use by another command" in complaint("recipe", "recipe.yaml")


def test_help(bnfree):
    code, output, _ = bnfree("recipe", "--help")
    assert code == 0
    assert "--stages" in output


def start(project, *options):
    script = project / "command.py"
    script.write_text("import sys\nfrom bnfree.lightning_modules.cli import main\nsys.exit(main())\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(script), "recipe", "recipe.yaml", *options],
        cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_weights(recipe, project):
    options = ["--trainer.max_epochs=15", "--test_after_fit=true"]
    whole = start(project, "--run_dir=whole", *options)
    _, errors = whole.communicate(timeout=1200)
    assert whole.returncode == 0, errors
    moments = random.Random(0)
    for after in (0, 1, 3, 0, 2):
        process = start(project, "--run_dir=killed", *options)
        epochs = -1
        for line in process.stdout:
            epochs += line.startswith("epoch ") or (epochs < 0 and line.startswith("Stage "))
            if epochs == after:
                break
        assert epochs == after, "it ended before it was to be killed"
        time.sleep(moments.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = start(project, "--run_dir=killed", *options)
    _, errors = process.communicate(timeout=1200)
    assert process.returncode == 0, errors
    for name in ("step1", "step2"):
        assert_same(weights(project / "killed" / name), weights(project / "whole" / name))
        assert_same(weights(project / "killed" / name, "best"), weights(project / "whole" / name, "best"))
        results = [(project / run / name / "finished.yaml").read_text() for run in ("killed", "whole")]
        assert results[0] == results[1]


@pytest.mark.slow
def test_two_processes_run_both_stages_as_one_after_the_other(recipe, project):
    options = ["--trainer.strategy=ddp", "--trainer.devices=2", "--data.batch_size=8", "--test_after_fit=true"]
    for more in ([], ["--run_dir=apart", "--stages=step1"], ["--run_dir=apart", "--stages=step2"]):
        process = start(project, *options, *more)
        _, errors = process.communicate(timeout=1200)
        assert process.returncode == 0, errors
    for name in ("step1", "step2"):
        assert (recipe / name / "finished.yaml").is_file()
        assert_same(weights(recipe / name), weights(project / "apart" / name))
