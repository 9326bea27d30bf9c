"""Configs by name: the user's file first, then the shipped recipes; and the command that lists and copies them."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bnfree.errors import InputError
from bnfree.import_names import folder
from bnfree.lightning_modules.training.config.shipped import description, find_config, shipped_configs


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_name_finds_a_shipped_recipe_in_any_directory(here):
    assert find_config("quickstart") == find_config("quickstart.yaml") == folder("configs") / "quickstart.yaml"
    assert "quickstart" in shipped_configs()


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml"])
def test_a_file_of_the_working_directory_wins(here, name):
    (here / name).write_text("trainer: {}\n")
    assert find_config("quickstart") == Path(name)


def test_a_directory_of_that_name_is_no_config(here):
    (here / "quickstart").mkdir()
    assert find_config("quickstart") == folder("configs") / "quickstart.yaml"


def test_names_in_a_file_are_looked_for_beside_it_first(here):
    (here / "recipes").mkdir()
    for place in (here, here / "recipes"):
        (place / "mine.yaml").write_text("trainer: {}\n")
    assert find_config("mine", beside=here / "recipes") == here / "recipes" / "mine.yaml"
    assert find_config("quickstart", beside=here / "recipes") == folder("configs") / "quickstart.yaml"


def test_an_edited_copy_wins_over_what_a_shipped_recipe_names(here):
    (here / "cifar10_step1.yaml").write_text("trainer: {}\n")
    assert find_config("cifar10_step1.yaml", beside=folder("configs")) == Path("cifar10_step1.yaml")
    assert find_config("cifar10_step2.yaml", beside=folder("configs")) == folder("configs") / "cifar10_step2.yaml"


@pytest.mark.parametrize("name", ["quickstrat", "quickstrat.yaml", "configs/quickstart.yml"])
def test_an_unknown_name_is_answered_with_the_nearest(here, name):
    with pytest.raises(InputError, match=f"config='{name}' does not exist; did you mean 'quickstart'?"):
        find_config(name)


def test_a_plugin_without_an_overlay_is_answered_with_its_option(here):
    with pytest.raises(InputError, match=r"^config='cosine' does not exist; .* give --model.backbone.head=cosine inst"):
        find_config("cosine")


def test_the_nearest_name_may_be_a_file_of_the_user(here):
    (here / "my_training.yaml").write_text("trainer: {}\n")
    with pytest.raises(InputError, match=r"names 'my_trainin.yaml', which does not exist; .*'my_training.yaml'"):
        find_config("my_trainin.yaml", given="stage 'a' names 'my_trainin.yaml', which")


def test_every_recipe_says_what_it_is():
    for name, path in shipped_configs().items():
        assert len(description(path)) > 20, name
        assert not description(path).startswith(("bnfree", "DIR")), name


@pytest.mark.slow
def test_fit_by_name_trains_in_a_directory_of_its_own_name(bnfree, project):
    assert bnfree("fit", "--config", "quickstart", "--config=bf16", "--trainer.fast_dev_run=1")[0] == 0
    bnfree(
        "fit", "-c", "quickstart", "--trainer.max_steps=1", "--trainer.limit_val_batches=1", "--test_after_fit=false"
    )
    (run,) = (project / "runs" / "quickstart").iterdir()
    assert (
        yaml.safe_load((run / "config.yaml").read_text())["data"]["class_path"] == "bnfree.datamodules.DigitsDataModule"
    )


def test_subcommands_that_look_at_a_config_take_its_name(bnfree, complaint):
    code, out, _ = bnfree("summary", "quickstart", "--model.backbone.width=4")
    assert code == 0
    assert out.startswith("ReActNet18, images 1x16x16")
    assert complaint("summary", "quickstrat") == "'quickstrat' does not exist; did you mean 'quickstart'?"


def test_the_command_lists_and_copies(bnfree, complaint, project):
    code, out, _ = bnfree("configs")
    assert code == 0
    assert "quickstart " in out
    assert "ReActNet-18 of width 16 on scikit-learn's digits" in " ".join(out.split())
    assert bnfree("configs", "copy", "quickstart")[1] == "Written: quickstart.yaml\n"
    assert (project / "quickstart.yaml").read_text() == (folder("configs") / "quickstart.yaml").read_text()
    assert "is not overwritten" in complaint("configs", "copy", "quickstart")
    (project / "deep").mkdir()
    bnfree("configs", "copy", "bf16.yaml", "deep")
    assert (project / "deep" / "bf16.yaml").is_file()
    assert (
        complaint("configs", "copy", "quikstart")
        == "there is no shipped config 'quikstart'; did you mean 'quickstart'?"
    )
    assert "did you mean 'copy'?" in complaint("configs", "copie", "quickstart")
    assert "wants the name" in complaint("configs", "copy")


def test_the_command_waits_for_no_torch():
    code = (
        "import sys; from bnfree.lightning_modules.cli import main; main(['configs']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=1200).returncode == 0
