"""What `bnfree` answers without torch."""

import subprocess
import sys
import types

import pytest

from bnfree.errors import InputError
from bnfree.lightning_modules.cli import SUBCOMMANDS, Subcommand, main
from bnfree.names import did_you_mean, nearest


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["--help"], ["-h"], ["fitt"], ["--version"], ["--config", "x.yaml"], ["ticket"], ["ticket", "inof"],
        ["report", "--help"], ["lottery", "report", "--help"],
    ],
)  # fmt: skip
def test_answers_without_importing_torch(arguments):
    script = (
        f"import sys\nfrom bnfree.lightning_modules.cli import main\ntry:\n    main({arguments})\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "assert 'torch' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=1200)
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr


def test_help_lists_every_subcommand_with_its_summary(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, subcommand in SUBCOMMANDS.items():
        assert f"  {name} " in out
        assert subcommand.summary in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tset"], "subcommand 'tset' is not known; did you mean 'test'?"),
        (["xyz"], "subcommand 'xyz' is not known; choose from fit, "),
        (["--trainer.max_epochs=3"], "stands before the subcommand; give one of fit, "),
    ],
)
def test_wrong_subcommand(capsys, arguments, said):
    assert main(arguments) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("bnfree: error: ")
    assert said in stderr
    assert stderr.count("\n") == 1


def test_a_mistake_found_by_a_loader_process_is_one_sentence(capsys, monkeypatch):
    module = types.ModuleType("failing")

    def run(arguments):
        raise InputError(
            "Caught InputError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
            "  raise InputError(...)\nbnfree.errors.InputError: image='a.png' is damaged.\n"
        )

    module.run = run
    monkeypatch.setitem(sys.modules, "bnfree.lightning_modules.failing", module)
    monkeypatch.setitem(SUBCOMMANDS, "fail", Subcommand("fails", "failing"))
    assert main(["fail"]) == 2
    assert capsys.readouterr().err == "bnfree: error: image='a.png' is damaged.\n"


def test_nearest_ignores_case_and_refuses_the_unlike():
    assert nearest("reactnet18", ["ReActNet18", "ReActNetA"]) == "ReActNet18"
    assert nearest("banana", ["ReActNet18", "ReActNetA"]) is None
    assert did_you_mean("banana", ["ReActNet18"]) == ""
