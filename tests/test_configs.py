"""Every config runs, in a shortened form, through the command that its first line names."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from small_data import write_cifar, write_fashion_mnist, write_image

from bnfree.lightning_modules.cli import main

CONFIGS = Path(__file__).parents[1] / "configs"
SHORT = [
    "--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1",
    "--trainer.limit_test_batches=1", "--trainer.accelerator=cpu", "--model.backbone.width=4", "--data.batch_size=4",
    "--model.calibration_images=4",
]  # fmt: skip
SMALL_FOLDER = ["--data.val_split=4", "--data.test_split=4", "--data.limit_train=20"]
OPTIONS = {
    "quickstart": [],
    "fashion_mnist": ["--data.val_split=10"],
    "cifar10_small": SMALL_FOLDER,
    "cifar10_multi_prize_small": SMALL_FOLDER,
    "digits_multi_prize": [],
    "image_folder": ["--data.num_workers=0"],
    "cifar10_step1": ["--data.val_split=10"],
    "cifar10_step2": ["--data.val_split=10"],
    "cifar100_step1": ["--data.val_split=10"],
    "cifar100_step2": ["--data.val_split=10"],
    "imagenet_reactnet_a_step1": ["--model.backbone.num_classes=10", "--data.val_split=4", "--data.num_workers=0"],
    "imagenet_reactnet_a_step2": ["--model.backbone.num_classes=10", "--data.val_split=4", "--data.num_workers=0"],
    "teacher_cifar10_resnet9": ["--data.val_split=10"],
    "teacher_cifar10_resnet18": ["--data.val_split=10"],
    "teacher_cifar10_resnet18_bn_free": ["--data.val_split=10"],
}
# What goes on from another run.
FROM_ANOTHER = {"finetune"}
# Networks of one width.
OF_ONE_WIDTH = {"teacher_cifar10_resnet18", "cifar10_recipe_distilled"}
OVERLAYS = {
    "batch_norm",
    "distilled",
    "none",
    "ddp",
    "ddp_8gpu",
    "compile",
    "channels_last",
    "bf16",
    "gradient_windows",
    "cifar10_folder",
}
# Recipes of several stages, with the options that shorten them.
RECIPES = {
    "cifar10_recipe_small": SMALL_FOLDER,
    "cifar10_recipe_biper_small": SMALL_FOLDER,
    "cifar10_recipe_cpu": [*SMALL_FOLDER, "--trainer.strategy=auto", "--trainer.devices=1"],
    "cifar10_recipe": ["--data.val_split=10"],
    "cifar10_recipe_distilled": [
        "--data.val_split=10", "--step1.model.backbone.width=4", "--step2.model.backbone.width=4",
    ],
    "cifar100_recipe": ["--data.val_split=10"],
    "imagenet_reactnet_a_recipe": OPTIONS["imagenet_reactnet_a_step1"],
}  # fmt: skip

# Levels of a lottery, likewise.
LOTTERIES = {"digits_lottery": [], "digits_data_efficient_lottery": [], "cifar10_lottery_small": SMALL_FOLDER}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """One folder with every layout in it."""
    folder = tmp_path_factory.mktemp("data")
    write_cifar(folder, 10)
    write_cifar(folder, 100, images=60)
    write_fashion_mnist(folder)
    for label in range(10):
        for i in range(5):
            write_image(folder / "train" / f"class{label}" / f"{i}.png", 32, 32, 10 * label + i)
        write_image(folder / "val" / f"class{label}" / "0.png", 32, 32, label)
    return folder


def arguments_of(name, run_dir, data_dir, subcommand="fit"):
    """The command in the config's first line, shortened, with real folders in place of the capitals.

    It names shipped configs, which must be found wherever it is given.
    """
    line = (CONFIGS / f"{name}.yaml").read_text().splitlines()[0]
    words = shlex.split(line.removeprefix("# "))
    assert words[:2] == ["bnfree", subcommand], line
    assert name in words, line
    words = [w.replace("=DIR", f"={data_dir}") for w in words[1:]]
    short = [option for option in SHORT if "width" not in option or name not in OF_ONE_WIDTH]
    return [*words, *short, f"--run_dir={run_dir}"]


def test_every_config_is_known_here():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == (
        set(OPTIONS) | FROM_ANOTHER | OVERLAYS | set(RECIPES) | set(LOTTERIES)
    )


@pytest.mark.parametrize("name", [name for name in OPTIONS if not name.endswith("step2")])
@pytest.mark.filterwarnings("ignore")
def test_recipe_trains(name, data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    assert main([*arguments_of(name, run, data_dir), *OPTIONS[name]]) == 0
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    assert (run / "checkpoints" / "best.ckpt").is_file()
    assert "val/acc" in (run / "metrics.csv").read_text()
    step2 = name.replace("step1", "step2")
    if step2 == name:
        return
    words = [w.replace("STEP1", str(run)) for w in arguments_of(step2, tmp_path / "run2", data_dir)]
    assert any(str(run) in w for w in words)
    assert main([*words, *OPTIONS[step2]]) == 0
    after = torch.load(tmp_path / "run2" / "checkpoints" / "last.ckpt", weights_only=True)
    assert after["state_dict"].keys() == checkpoint["state_dict"].keys()
    config = yaml.safe_load((tmp_path / "run2" / "config.yaml").read_text())
    assert config["model"]["init_args"]["backbone"]["init_args"]["binary_weights"] is True


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in RECIPES])
@pytest.mark.filterwarnings("ignore")
def test_recipe_of_stages_trains(name, data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    assert main([*arguments_of(name, run, data_dir, "recipe"), *RECIPES[name]]) == 0
    binary = []
    stages = list(yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["stages"])
    for stage in stages:
        assert (run / stage / "finished.yaml").is_file()
        config = yaml.safe_load((run / stage / "config.yaml").read_text())
        model = config["model"]["init_args"]
        binary.append(model["backbone"]["init_args"].get("binary_weights"))
        if "teacher" in stages[: stages.index(stage)]:
            assert model["teacher"]["init_args"]["weights"] == str(run / "teacher" / "checkpoints" / "best.ckpt")
    assert binary[-2:] == ([None, True] if name == "cifar10_recipe_cpu" else [False, True])


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in LOTTERIES])
@pytest.mark.filterwarnings("ignore")
def test_lottery_trains_its_first_level(name, data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    words = arguments_of(name, run, data_dir, "lottery")
    assert words[1] == "run"
    assert main([*words, *LOTTERIES[name], "--lottery.densities=[0.5]", "--seeds=3"]) == 0
    results = [yaml.safe_load((run / "seed_3" / f"level_0{i}" / "finished.yaml").read_text()) for i in (0, 1)]
    assert [result["steps"] for result in results] == [2, 2]
    assert results[0]["density"] == 1
    data = [yaml.safe_load((run / "seed_3" / f"level_0{i}" / "config.yaml").read_text())["data"] for i in (0, 1)]
    assert data[0] == data[1]
    assert results[1]["density"] == pytest.approx(0.5, abs=1e-3)
    assert (run / "levels.csv").is_file()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_cifar_as_image_files(data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*arguments_of("cifar10_folder", tmp_path / "run", data_dir), "--data.limit_train=20"]) == 0
    data = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]
    assert data["class_path"] == "bnfree.datamodules.ImageFolderDataModule"
    assert (data["init_args"]["normalization"], data["init_args"]["batch_size"]) == ("cifar10", 4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compile_overlay_trains(data_dir, tmp_path, monkeypatch):
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("torch.compile needs a C++ compiler on the CPU")
    monkeypatch.chdir(tmp_path)
    assert main([*arguments_of("compile", tmp_path / "run", data_dir), "--trainer.limit_val_batches=0"]) == 0
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    assert not any("_orig_mod" in key for key in checkpoint["state_dict"])


@pytest.mark.parametrize("norm", ["batch_norm", "none"])
@pytest.mark.filterwarnings("ignore")
def test_overlay_changes_the_network_and_nothing_else(norm, data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    assert main(arguments_of(norm, run, data_dir)) == 0
    weights = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert any("running_mean" in key for key in weights) is (norm == "batch_norm")
    assert not any(key.endswith((".gain", ".beta")) for key in weights)
    config = yaml.safe_load((run / "config.yaml").read_text())
    plain = yaml.safe_load((CONFIGS / "quickstart.yaml").read_text())
    assert (
        config["model"]["init_args"]["optimizer"]["init_args"]["lr"]
        == (plain["model"]["init_args"]["optimizer"]["init_args"]["lr"])
    )


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("bf16", "precision", "bf16-mixed"),
        ("channels_last", None, "bnfree.callbacks.ChannelsLast"),
        ("gradient_windows", None, "bnfree.callbacks.GradientWindows"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_overlay_changes_how_it_is_computed_and_nothing_else(name, key, value, data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments_of(name, tmp_path / "run", data_dir)) == 0
    assert main([*arguments_of("quickstart", tmp_path / "plain", data_dir)]) == 0
    ours, plain = (yaml.safe_load((tmp_path / run / "config.yaml").read_text()) for run in ("run", "plain"))
    if key is None:
        assert ours["trainer"]["callbacks"].pop()["class_path"] == value
    else:
        assert (ours["trainer"].pop(key), plain["trainer"].pop(key)) == (value, None)
    assert ours == plain
    ours, plain = (
        torch.load(tmp_path / run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in ("run", "plain")
    )
    assert ours.keys() == plain.keys()
    assert all(value.dtype == plain[name].dtype for name, value in ours.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "ddp_8gpu"])
def test_ddp_overlay_trains_on_two_processes(name, data_dir, tmp_path):
    words = arguments_of(name, tmp_path / "run", data_dir)
    words = [w for w in words if not w.startswith(("--trainer.devices", "--data.data_dir"))]
    words += ["--trainer.devices=2", *OPTIONS["imagenet_reactnet_a_step1" if name == "ddp_8gpu" else "quickstart"]]
    words += ["--data.val_split=10", f"--data.data_dir={data_dir}", "--trainer.accumulate_grad_batches=2"]
    # Gradients in another memory format than the buffers of DDP would be copied, with a warning.
    words += ["--trainer.callbacks+=bnfree.callbacks.ChannelsLast"]
    run = subprocess.run(
        [sys.executable, "-m", "bnfree.lightning_modules.cli", *words],
        cwd=tmp_path, capture_output=True, text=True, timeout=1200,
        env={**os.environ, "PYTHONPATH": str(CONFIGS.parent), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.count("Run directory:") == 1
    assert "stride" not in run.stderr
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_distilled_overlay_learns_from_the_network_of_another_run(data_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    said = []
    monkeypatch.setattr("bnfree.lightning_modules.modules.distilled_classifier.rank_zero_info", said.append)
    assert main(arguments_of("quickstart", tmp_path / "teacher", data_dir)) == 0
    run = tmp_path / "run"
    words = [w.replace("TEACHER", str(tmp_path / "teacher")) for w in arguments_of("distilled", run, data_dir)]
    assert main(words) == 0
    assert len(said) == 1
    assert re.fullmatch(r"Teacher ReActNet18: \d+\.\d\d % of 216 validation images\.", said[0])
    config, plain = (yaml.safe_load((tmp_path / n / "config.yaml").read_text()) for n in ("run", "teacher"))
    assert config["model"]["class_path"] == "bnfree.lightning_modules.DistilledClassifier"
    for name, value in plain["model"]["init_args"].items():
        assert config["model"]["init_args"][name] == value, name
    (tmp_path / "teacher").rename(tmp_path / "gone")
    assert main(["test", f"--ckpt_path={run}/checkpoints/last.ckpt", "--trainer.accelerator=cpu"]) == 0
    assert main(["fit", f"--ckpt_path={run}/checkpoints/last.ckpt", "--trainer.max_epochs=2"]) == 2
    assert "best.ckpt' is not a file" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_finetune_takes_a_run_to_images_of_other_classes(data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*arguments_of("cifar10_small", tmp_path / "first", data_dir), *SMALL_FOLDER]) == 0
    for label in range(3):
        for i in range(8):
            write_image(tmp_path / "mine" / "train" / f"kind{label}" / f"{i}.png", 64, 64, 10 * label + i)
    words = arguments_of("finetune", tmp_path / "run", tmp_path / "mine")
    words = [w.replace("CHECKPOINT", str(tmp_path / "first/checkpoints/last.ckpt")) for w in words]
    words = [w for w in words if "width" not in w]
    assert main([*words, "--data.val_split=4", "--data.num_workers=0"]) == 0
    before, after = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("first", "run")
    )
    assert after["global_step"] == 2
    assert after["state_dict"]["backbone.classifier.weight"].shape == (3, 32)
    assert after["state_dict"].keys() == before["state_dict"].keys()
    # The network is that of the other run, and stands in the config from now on.
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["model"]["init_args"]["backbone"]["init_args"]["width"] == 4
    assert config["data"]["init_args"]["image_size"] == 64
    (tmp_path / "first").rename(tmp_path / "gone")
    assert main(["validate", f"--ckpt_path={tmp_path}/run/checkpoints/last.ckpt", "--trainer.accelerator=cpu"]) == 0
