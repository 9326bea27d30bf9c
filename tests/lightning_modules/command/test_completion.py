"""`bnfree completion`: what bash offers with the printed script."""

import shutil
import subprocess
import sys

import pytest

from bnfree.lightning_modules.cli import SUBCOMMANDS, main

pytest.importorskip("shtab")


@pytest.fixture(scope="module")
def offered(tmp_path_factory):
    """What bash offers for the last word of a command line."""
    place = tmp_path_factory.mktemp("completion")
    with pytest.MonkeyPatch.context() as patch, (place / "script").open("w") as file:
        patch.setattr(sys, "stdout", file)
        assert main(["completion", "bash"]) == 0
    (place / "mine.yaml").write_text("trainer: {max_epochs: 1}\n")
    (place / "notes.txt").touch()
    (place / "complete.sh").write_text(
        'source ./script\nCOMP_WORDS=(bnfree "$@")\nCOMP_CWORD=$#\n_shtab_bnfree\nprintf "%s\\n" "${COMPREPLY[@]}"\n'
    )

    def complete(*words):
        done = subprocess.run(
            ["bash", "complete.sh", *words], cwd=place, capture_output=True, text=True, check=True, timeout=600
        )
        assert done.stderr == ""
        return done.stdout.split()

    return complete


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_subcommands_actions_options_and_configs_are_offered(offered):
    assert set(SUBCOMMANDS) <= set(offered(""))
    assert offered("lott") == ["lottery"]
    assert offered("lottery", "con") == ["controls"]
    assert offered("fit", "--trainer.max_ep") == ["--trainer.max_epochs"]
    assert offered("fit", "--model.backbone.wid") == ["--model.backbone.width"]
    assert offered("sweep", "quickstart", "--model.optimizer.momen") == ["--model.optimizer.momentum"]
    assert offered("fit", "--config", "quick") == ["quickstart"]
    assert offered("fit", "--config", "mine") == ["mine.yaml"]
    assert offered("lottery", "run", "digits_l") == ["digits_lottery"]
    assert offered("report", "no") == ["notes.txt"]
    assert "--over" in offered("sweep", "--o")


def test_what_is_refused(capsys, monkeypatch):
    assert main(["completion", "bsh"]) == 2
    assert "did you mean 'bash'?" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "pip install shtab" in capsys.readouterr().err
