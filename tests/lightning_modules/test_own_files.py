"""Files of the user's own, with classes of the user's own: they go on without a flag, and nobody else's do."""

import shutil

import pytest
import torch
import yaml

from bnfree import trust, users_words


@pytest.fixture
def new_process(monkeypatch):
    """Forgets what this process knows of its user, as the next process does."""

    def forget(home=None):
        monkeypatch.setattr(trust, "_approved", set())
        users_words.forget()
        if home is not None:
            monkeypatch.setenv("XDG_CONFIG_HOME", str(home))

    return forget


@pytest.fixture
def run(project, trained):
    """A copy of a run with the user's module, network, data and callback; a copy of its checkpoint lies alone."""
    shutil.copytree(trained, project / "run")
    (project / "alone").mkdir()
    shutil.copy(project / "run/checkpoints/best.ckpt", project / "alone/best.ckpt")
    return project


COMMANDS = {
    "test": ["test", "--ckpt_path=run/checkpoints/best.ckpt"],
    "predict": ["predict", "--ckpt_path=run/checkpoints/best.ckpt"],
    "summary": ["summary", "run", "--image_shape=1,2,2"],
    "fit": ["fit", "--ckpt_path=run/checkpoints/last.ckpt", "--run_dir=run", "--trainer.max_epochs=3"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_users_run_goes_on_in_another_process(run, bnfree, new_process, command):
    new_process()
    code, _, err = bnfree(*COMMANDS[command])
    assert code == 0, err
    if command == "fit":
        new_process()
        assert bnfree("test", "--ckpt_path=run/checkpoints/last.ckpt")[0] == 0


def test_another_users_run_is_refused_until_a_flag_permits_it(run, bnfree, complaint, new_process, tmp_path):
    for words in COMMANDS.values():
        new_process(tmp_path / "stranger")
        line = complaint(*words)
        assert "'toy_project." in line
        assert "--allow_classes=toy_project." in line
    new_process(tmp_path / "stranger")
    assert bnfree("test", "--ckpt_path=run/checkpoints/best.ckpt", "--allow_classes=toy_project")[0] == 0
    new_process(tmp_path / "stranger")
    assert bnfree("--allow_classes", "toy_project", *COMMANDS["summary"])[0] == 0


def test_a_config_of_the_users_own_allows_what_it_names(run, bnfree, new_process, tmp_path):
    new_process(tmp_path / "stranger")
    assert bnfree("test", "--config=toy.yaml", "--ckpt_path=run/checkpoints/best.ckpt")[0] == 0
    new_process()
    assert bnfree("test", "--config=run/config.yaml", "--ckpt_path=run/checkpoints/best.ckpt")[0] == 0


def test_other_arguments_under_a_copied_signature_are_refused(run, complaint, new_process):
    path = "alone/best.ckpt"
    content = torch.load(path, weights_only=True)
    assert content[trust.KEY]
    content["hyper_parameters"]["backbone"]["init_args"]["width"] = 5
    torch.save(content, path)
    new_process()
    assert "--allow_classes=toy_project" in complaint("summary", path, "--image_shape=1,2,2")
    config = yaml.safe_load((run / "run/config.yaml").read_text())
    signed = [line for line in (run / "run/config.yaml").read_text().splitlines() if trust.KEY in line]
    assert len(signed) == 1
    config["trainer"]["callbacks"][0]["init_args"]["factor"] = 2.0
    (run / "run/config.yaml").write_text(f"{signed[0]}\n{yaml.safe_dump(config)}")
    new_process()
    assert "toy_project.ToyCallback" in complaint("test", "--ckpt_path=run/checkpoints/best.ckpt")


def test_the_key_is_made_where_it_is_needed_and_nowhere_else(project, bnfree, new_process, tmp_path):
    home = tmp_path / "fresh"
    new_process(home)
    words = ["--data=bnfree.datamodules.DigitsDataModule", "--model=bnfree.lightning_modules.ImageClassifier",
             "--model.backbone=bnfree.backbones.ReActNet18", "--model.backbone.num_classes=10",
             "--model.backbone.in_channels=1", "--model.backbone.width=4", "--trainer.max_steps=1",
             "--trainer.limit_val_batches=1"]  # fmt: skip
    assert bnfree("fit", *words, "--run_dir=ours")[0] == 0
    assert not home.exists()
    assert bnfree("fit", "--config=toy.yaml", "--trainer.max_epochs=1", "--run_dir=own")[0] == 0
    assert (home / "bnfree" / "key").is_file()


def test_a_damaged_checkpoint_is_noticed(run, complaint):
    path = run / "alone" / "best.ckpt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "checksum" in complaint("test", f"--ckpt_path={path}")
