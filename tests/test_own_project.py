"""The examples of docs/own_project.md are run as they are printed."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from bnfree.lightning_modules.cli import main

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "own_project.md").read_text()
SHORT = ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--trainer.accelerator=cpu"]


def program(name):
    (found,) = re.findall(rf"```python\n# {name}\n(.*?)```", TEXT, re.DOTALL)
    return found


def command(beginning):
    """The words of the one command that begins so."""
    (found,) = re.findall(rf"```bash\n({re.escape(beginning)}.*?)```", TEXT, re.DOTALL)
    return shlex.split(found.replace("\\\n", " "))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def run(name, monkeypatch, arguments=()):
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    exec(compile(program(name), name, "exec"), {"__name__": "__main__"})


def test_a_module_of_ones_own_with_the_callbacks(tmp_path, monkeypatch, capfd):
    run("own_module.py", monkeypatch)
    assert list(tmp_path.rglob("weight_dynamics.csv"))


def test_networks_of_others_in_the_classifier(monkeypatch):
    run("own_backbones.py", monkeypatch)


def test_a_lightning_cli_of_ones_own(tmp_path, monkeypatch):
    words = command("python own_cli.py")
    run("own_cli.py", monkeypatch, [*words[2:], *SHORT, "--trainer.logger=false"])
    assert list(tmp_path.rglob("*.ckpt"))


def test_a_command_of_ones_own(tmp_path, monkeypatch, capsys):
    words = [*command("python own_command.py")[2:], *SHORT, "--model.backbone.width=4", "--run_dir=run"]
    run("own_command.py", monkeypatch, words)
    assert "with the new data" in capsys.readouterr().out
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").is_file()


@pytest.mark.slow
def test_a_function_that_makes_a_network(tmp_path, capsys):
    pytest.importorskip("timm")
    (config,) = re.findall(r"```yaml\n# timm.yaml\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "timm.yaml").write_text(config)
    words = [*command("bnfree fit --config quickstart --config timm.yaml")[1:], *SHORT, "--trainer.max_epochs=1"]
    words += ["--test_after_fit=false", "--run_dir=run"]
    assert main([*words, "--trainer.callbacks=bnfree.callbacks.AdaptiveGradientClipping"]) == 0
    assert main(["validate", "--ckpt_path=run/checkpoints/last.ckpt", "--trainer.limit_val_batches=1"]) == 0
    assert main(["fit", "--config=quickstart", "--model.backbone=timm.create_model", "--model.backbone.width=4"]) == 2
    assert "take TimmNetwork" in capsys.readouterr().err


@pytest.mark.slow
def test_a_network_of_torchvision_from_the_command_line(tmp_path):
    words = [
        *command("bnfree fit --config quickstart --model.backbone")[1:],
        *SHORT,
        "--trainer.max_epochs=1",
        "--test_after_fit=false",
        "--run_dir=run",
    ]
    callbacks = "--trainer.callbacks=bnfree.callbacks.AdaptiveGradientClipping"
    assert main([*words, callbacks]) == 0
    assert (tmp_path / "run" / "metrics.csv").is_file()
