"""Files written when `callbacks`, `datamodules` and `lightning_modules` were packages of their own.

A fit of two epochs on 320 digits, a lottery of one level and a packed file, all of width 4, lie in `data/earlier`. The
user's directory has packages of those three names, without the classes that the files name.
"""

import csv
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml

from bnfree.import_names import PARTS, folder
from bnfree.lightning_modules.training.parsed_fit import parse_fit
from bnfree.lightning_modules.training.settings import FitSettings

EARLIER = Path(__file__).parents[2] / "data" / "earlier"


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["", "beside packages of the user"])
def earlier(request, project, monkeypatch):
    """The working directory, with copies of the files."""
    shutil.copytree(EARLIER, project, dirs_exist_ok=True)
    if request.param:
        for part in PARTS:
            (project / part).mkdir()
            (project / part / "__init__.py").write_text("")
        monkeypatch.syspath_prepend(project)
        with packages_of_the_user():
            yield project
    else:
        yield project


@contextmanager
def packages_of_the_user():
    """Forgets the modules of the names in question, and in the end those that have been imported meanwhile."""

    def take_out():
        return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in PARTS}

    ours = take_out()
    try:
        yield
    finally:
        take_out()
        sys.modules.update(ours)


def row(directory, name):
    with (directory / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def test_a_run_is_tested(earlier, bnfree):
    code, out, _ = bnfree("test", "--ckpt_path=run/checkpoints/last.ckpt")
    assert code == 0
    assert "written with" not in out
    # What the code of that time gave for this checkpoint.
    assert "16.94 %" in out


def test_a_run_goes_on(earlier, bnfree):
    code, out, _ = bnfree(
        "fit", "--ckpt_path=run/checkpoints/last.ckpt", "--run_dir=run", "--trainer.max_epochs=3"
    )  # fmt: skip
    assert code == 0
    assert "written with" not in out
    assert len(row(earlier / "run", "val/acc")) == 3
    config = yaml.safe_load((earlier / "run" / "config-resumed-1.yaml").read_text())
    assert config["model"]["class_path"] == "bnfree.lightning_modules.ImageClassifier"
    assert {c["class_path"].partition(".")[0] for c in config["trainer"]["callbacks"]} == {"bnfree"}
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 15


def test_a_config_says_the_same_under_the_names_of_today(earlier):
    for directory in ("run", "multi", "lottery/seed_0/level_01"):
        settings = parse_fit(FitSettings(f"{directory}/config.yaml")).settings
        assert settings["model"]["class_path"] == "bnfree.lightning_modules.ImageClassifier"
        assert settings["data"]["class_path"] == "bnfree.datamodules.DigitsDataModule"
        schedule = settings["model"]["init_args"]["lr_scheduler"]["class_path"]
        assert schedule == "bnfree.lightning_modules.modules.linear_decay.LinearDecay"


def test_a_run_is_counted_and_exported(earlier, bnfree):
    code, out, _ = bnfree("summary", "run")
    assert code == 0
    assert "14.8 times smaller" in out
    assert bnfree("export", "run/checkpoints/last.ckpt", "--output=new.safetensors")[0] == 0
    assert (earlier / "new.safetensors").stat().st_size > 10_000


def test_a_packed_file_predicts_as_the_run_it_is_of(earlier, bnfree):
    code, out, _ = bnfree("test", "packed.safetensors", "--config=run/config.yaml", "--engine=torch")
    assert code == 0
    assert "test/acc" in out


def test_a_ticket_is_described_and_tested(earlier, bnfree):
    code, out, _ = bnfree("ticket", "info", "lottery/seed_0/level_01/ticket.pt")
    assert code == 0
    assert "ReActNet18(num_classes=10" in out
    assert "a33605ddf248b5df8bf244dcd26feab39255e2e22153783954d4a52e790e3c84" in out
    (earlier / "alone").mkdir()
    shutil.move("lottery/seed_0/level_01/ticket.pt", "alone/ticket.pt")
    code, out, _ = bnfree("test", "--ckpt_path=alone/ticket.pt")
    assert code == 0
    assert "is a ticket" in out


@pytest.mark.slow
def test_a_lottery_is_reported_and_known_as_finished(earlier, bnfree):
    code, out, _ = bnfree("report", "lottery")
    assert code == 0
    assert "Dense network, test accuracy in %: 14.72" in out
    code, out, err = bnfree(
        "lottery", "run", folder("configs") / "digits_lottery.yaml", "--data.limit_train=320", "--trainer.max_epochs=2",
        "--model.backbone.width=4", "--lottery.densities=[0.5]", "--run_dir=lottery",
    )  # fmt: skip
    assert code == 0, err
    assert "level 1 of 1 (density 0.5) has finished" in out


def test_the_users_class_of_the_same_name_comes_first(project, bnfree, monkeypatch):
    (project / "callbacks").mkdir()
    (project / "callbacks" / "__init__.py").write_text(
        "from lightning.pytorch import Callback\n\n\nclass WeightDynamics(Callback):\n"
        "    def on_fit_start(self, trainer, pl_module):\n        print('mine')\n"
    )
    monkeypatch.syspath_prepend(project)
    (project / "more.yaml").write_text("trainer: {callbacks: [{class_path: callbacks.WeightDynamics}]}\n")
    with packages_of_the_user():
        code, out, _ = bnfree("fit", "--config=toy.yaml", "--config=more.yaml", "--trainer.fast_dev_run=1")
        assert code == 0
        assert "mine\n" in out
        code, out, err = bnfree(
            "fit", "--config=toy.yaml", "--trainer.callbacks+=callbacks.ChannelsLast", "--trainer.fast_dev_run=1"
        )
        assert code == 0, err
