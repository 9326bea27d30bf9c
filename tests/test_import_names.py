"""One installed package: beside packages of the user, from every way to start, and never a module twice."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MINE = """
from lightning.pytorch import Callback


class Mine(Callback):
    def on_train_start(self, trainer, pl_module):
        print("trained with mine", flush=True)
"""
FIT = ["fit", "--config", "quickstart", "--trainer.callbacks+=callbacks.mine.Mine", "--model.backbone.width=4",
       "--trainer.max_steps=1", "--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1",
       "--trainer.callbacks+=callbacks.ChannelsLast"]  # fmt: skip


@pytest.fixture
def elsewhere(tmp_path):
    """A project with packages of all the names, beside an installation of bnfree alone."""
    for package in ("callbacks", "datamodules", "lightning_modules", "models", "configs"):
        (tmp_path / "project" / package).mkdir(parents=True)
        (tmp_path / "project" / package / "__init__.py").write_text("")
    (tmp_path / "project" / "callbacks" / "mine.py").write_text(MINE)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "bnfree").symlink_to(ROOT / "bnfree")
    # What pip writes: a script in a directory of scripts.
    (tmp_path / "bin").mkdir()
    script = "import sys\nfrom bnfree.lightning_modules.cli import main\nsys.exit(main())\n"
    (tmp_path / "bin" / "bnfree").write_text(script)
    return tmp_path / "project"


def python(directory, *words, path=None):
    """Runs Python in a directory; returns what it prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(path or directory.parent / "site")}
    run = subprocess.run(
        [sys.executable, *map(str, words)], cwd=directory, env=environment, capture_output=True, text=True, timeout=1200
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


@pytest.mark.parametrize(
    "first", ["", *(pytest.param(f"import {n}\n", marks=pytest.mark.slow) for n in ("bnfree", "bnfree.callbacks"))]
)
def test_the_users_packages_are_the_users(elsewhere, first):
    code = f"{first}import callbacks, datamodules, lightning_modules, models, configs\nprint(callbacks.__file__)"
    assert python(elsewhere, "-c", code).strip() == str(elsewhere / "callbacks" / "__init__.py")


@pytest.mark.parametrize("first", ["", "import bnfree\n"])
@pytest.mark.slow
def test_a_namespace_folder_of_a_neighbour_is_its_own(elsewhere, first):
    neighbour = elsewhere.parent / "neighbour"
    (neighbour / "datamodules").mkdir(parents=True)
    (neighbour / "datamodules" / "own.py").write_text("print('own')\n")
    assert python(neighbour, "-c", f"{first}import datamodules.own") == "own\n"


@pytest.mark.parametrize(
    "first",
    ["callbacks", "bnfree.callbacks", "datamodules.digits"],
)
@pytest.mark.slow
def test_no_module_is_there_twice_in_a_checkout(first):
    code = f"""
import importlib, sys
importlib.import_module("{first}")
import callbacks.weight_dynamics, datamodules, lightning_modules.linear_decay, lightning_modules.modules.linear_decay
import bnfree.callbacks.weight_dynamics, bnfree.datamodules.digits, bnfree.lightning_modules.modules.linear_decay
from callbacks import WeightDynamics
assert callbacks is bnfree.callbacks and datamodules is bnfree.datamodules
assert WeightDynamics is bnfree.callbacks.weight_dynamics.WeightDynamics
assert lightning_modules.linear_decay is bnfree.lightning_modules.modules.linear_decay
files = {{}}
for module in list(sys.modules.values()):
    files.setdefault(getattr(module, "__file__", None), set()).add(id(module))
# An environment may lie in the checkout, too.
ours = [f for f in files if f and f.startswith({str(ROOT)!r}) and "site-packages" not in f]
assert len(ours) > 50, len(ours)
print({{file: len(files[file]) for file in ours if len(files[file]) > 1}})
"""
    assert python(ROOT, "-c", code, path=ROOT) == "{}\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "start",
    [["bin/bnfree"], ["-m", "bnfree"], ["-m", "torch.distributed.run", "--nproc-per-node=1", "bin/bnfree"]],
    ids=["console script", "python -m", "torchrun"],
)
def test_classes_of_the_user_and_of_bnfree_train_together(elsewhere, start):
    start = [elsewhere.parent / word if word.startswith("bin/") else word for word in start]
    out = python(elsewhere, *start, *FIT)
    assert out.count("trained with mine") == 1
    assert "test/acc" in out
    assert "bnfree.callbacks.ChannelsLast" in next(elsewhere.glob("runs/quickstart/*/config.yaml")).read_text()


@pytest.mark.slow
def test_a_notebook_trains_twice(elsewhere):
    code = """
import sys
sys.argv = ["ipykernel_launcher.py", "-f", "kernel.json"]
from bnfree.lightning_modules import FitSettings, fit
short = {"trainer.max_steps": 2, "trainer.val_check_interval": 2, "model.backbone.width": 4, "test_after_fit": False}
results = [fit(FitSettings(configs=("quickstart",), options=short)) for _ in range(2)]
assert results[0].run_directory != results[1].run_directory
for name in ("val/acc", "val/loss", "loss"):
    assert results[0].metrics[name] == results[1].metrics[name], name
try:
    fit(FitSettings(configs=("quickstart",), options={"trainer.max_epoch": 2}))
except ValueError as error:
    print(type(error).__name__, error)
"""
    out = python(elsewhere, "-c", code)
    assert out.splitlines()[-1].startswith("InputError option '--trainer.max_epoch=2' is not known; did you mean")


@pytest.mark.slow
def test_pytest_in_the_users_directory(elsewhere):
    (elsewhere / "test_mine.py").write_text(
        "import bnfree.callbacks\nfrom callbacks.mine import Mine\n\n\n"
        "def test_both():\n    assert Mine.__module__ == 'callbacks.mine'\n"
        "    assert bnfree.callbacks.WeightDynamics.__module__.startswith('bnfree.')\n"
    )
    assert "1 passed" in python(elsewhere, "-m", "pytest", "-q", "-p", "no:cacheprovider")


@pytest.mark.slow
def test_the_wheel_holds_one_package_with_its_files(tmp_path):
    pytest.importorskip("setuptools")
    pytest.importorskip("pip")
    # A copy, since building leaves folders behind.
    source = tmp_path / "source"
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True)
    if archive.returncode != 0:
        pytest.skip("not a git checkout")
    source.mkdir()
    subprocess.run(["tar", "-x", "-C", str(source)], input=archive.stdout, check=True)
    python(source, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", tmp_path, ".", path=source)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"bnfree"}
    for name in (
        "bnfree/py.typed", "bnfree/callbacks/__init__.py", "bnfree/lightning_modules/training/config/shipped.py",
        "bnfree/datamodules/digits.py", "bnfree/configs/quickstart.yaml", "bnfree/configs/slurm/imagenet_reactnet_a.sh",
    ):  # fmt: skip
        assert name in names, name
    assert any(name.startswith("bnfree/pretrained/") and name.endswith(".safetensors") for name in names)
    # Unpacked and with no checkout near it, it finds its recipes.
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    (tmp_path / "empty").mkdir()
    listed = python(tmp_path / "empty", "-m", "bnfree", "configs", path=tmp_path / "installed")
    assert "quickstart" in listed
    fit = ["-m", "bnfree", "fit", "--config", "quickstart", "--trainer.fast_dev_run=1", "--model.backbone.width=4"]
    assert "test/acc" in python(tmp_path / "empty", *fit, path=tmp_path / "installed")
