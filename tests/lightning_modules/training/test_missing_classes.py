"""A checkpoint alone, away from its run, of a network of the user's own whose module is not there, or fails."""

import importlib
import shutil
import sys

import pytest
from small_digits import train_digits

MODULE = """
from bnfree.backbones import ReActNet18


class Net(ReActNet18):
    def __init__(self, width: int = 4):
        super().__init__(num_classes=10, in_channels=1, width=width)
"""
NETWORK = ["--model.backbone=own_net.Net", "--model.backbone.width=2"]


def forget():
    """What the next process does not know."""
    sys.modules.pop("own_net", None)
    importlib.invalidate_caches()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("own")
    (directory / "own_net.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        train_digits(directory / "run", *NETWORK)
    return directory / "run" / "checkpoints" / "last.ckpt"


@pytest.fixture
def loose(project, checkpoint):
    shutil.copy(checkpoint, project / "loose.ckpt")
    forget()
    yield project
    forget()


COMMANDS = {
    "test": ["test", "--ckpt_path=loose.ckpt"],
    "validate": ["validate", "--ckpt_path=loose.ckpt"],
    "predict": ["predict", "--ckpt_path=loose.ckpt"],
    "fit": ["fit", "--ckpt_path=loose.ckpt", "--trainer.max_epochs=2"],
    "summary": ["summary", "loose.ckpt"],
    "export": ["export", "loose.ckpt"],
    "config": ["fit", "--config=quickstart", *NETWORK],
    "teacher": ["fit", "--config=quickstart", "--model=DistilledClassifier", "--model.teacher.weights=loose.ckpt",
                "--model.teacher.network=own_net.Net"],
}  # fmt: skip
FAILURES = {
    "missing": (None, ": there is no module 'own_net'; start bnfree in the directory that holds the module"),
    "without the class": ("Other = 1\n", " names no class; look at what own_net holds."),
    "a function": ("def Net(width: int = 4):\n    return 4\n", ""),
    "in need of another": ("import no_such_package\n", " cannot be imported: 'own_net' needs 'no_such_package'"),
    "no Python": ("a = 1\ndef (:\n", " cannot be imported: SyntaxError in {}, line 2: invalid syntax"),
    "failing": ("raise RuntimeError('two\\nlines')\n", " cannot be imported: RuntimeError in {}, line 1: two lines"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("failure", ["missing", pytest.param("no Python", marks=pytest.mark.slow)])
def test_every_command_names_the_class_and_what_is_wrong_with_its_module(loose, complaint, command, failure):
    text, said = FAILURES[failure]
    if text is not None:
        (loose / "own_net.py").write_text(text)
    line = complaint(*COMMANDS[command])
    argument = "model.teacher.network" if command == "teacher" else "model.backbone"
    assert line.startswith(f"{argument}='own_net.Net'{said.format(loose / 'own_net.py')}")
    assert "too long" not in line
    assert not (loose / "runs").exists()


@pytest.mark.parametrize("failure", FAILURES)
def test_every_failure_has_its_sentence(loose, complaint, failure):
    text, said = FAILURES[failure]
    if text is not None:
        (loose / "own_net.py").write_text(text)
    line = complaint("test", "--ckpt_path=loose.ckpt")
    assert line.startswith(f"model.backbone='own_net.Net'{said.format(loose / 'own_net.py')}")


def test_a_module_that_leaves_python_is_told(loose, complaint):
    (loose / "own_net.py").write_text("import sys\n\nsys.exit()\n")
    for words in (COMMANDS["test"], COMMANDS["config"], COMMANDS["summary"]):
        forget()
        line = complaint(*words)
        assert line.startswith(f"{loose / 'own_net.py'}, line 3: the module ends Python (sys.exit)")


def test_an_argument_that_the_class_no_longer_has(loose, complaint):
    (loose / "own_net.py").write_text(MODULE.replace("width: int", "breadth: int"))
    assert complaint("test", "--ckpt_path=loose.ckpt") == (
        "model.backbone.width is not an argument of Net; it takes breadth."
    )


def test_its_weights_do_not_need_the_class(loose, bnfree):
    same = ["--model.backbone.width=2", "--data.image_size=8", "--trainer.fast_dev_run=1"]
    code, _, said = bnfree("fit", "--config=quickstart", "--model.init_from=loose.ckpt", *same)
    assert code == 0, said
