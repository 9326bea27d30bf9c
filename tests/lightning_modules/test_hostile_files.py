"""Files of strangers: whatever classes they name, nothing of them is imported or called.

Every kind of file and every subcommand that reads it, with every way to name a class; the files are real ones in which
the config has been changed.
"""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from bnfree import users_words

EARLIER = Path(__file__).parents[1] / "data" / "earlier"
MARKER = "marker"
TOUCH = f"import pathlib; pathlib.Path({MARKER!r}).touch()"
# Found by name alone, it is imported, and has run.
MODULE = f"{TOUCH}\n\n\nclass X:\n    def __init__(self, *a, **k):\n        pathlib.Path({MARKER!r}).touch()\n"
FUNCTION = {"class_path": "torch.fx.graph_module.reduce_graph_module",
            "init_args": {"body": {"_code": "def forward(self): pass"}, "import_block": TOUCH}}  # fmt: skip
CLASS = {"class_path": "planted.X", "init_args": {}}


def _backbone(value):
    return lambda model: model.update(backbone=value)


def _in_backbone(**arguments):
    return lambda model: model["backbone"]["init_args"].update(arguments)


def _whole(path):
    return lambda model: model.update(_class_path=path)


WAYS = {
    "a function as backbone": _backbone(FUNCTION),
    "a function as optimizer": lambda model: model.update(optimizer=FUNCTION),
    "a function as schedule": lambda model: model.update(lr_scheduler=FUNCTION),
    "a module of the working directory": _backbone(CLASS),
    "a class path alone": _backbone("planted.X"),
    "a mapping in a text": _backbone(json.dumps(CLASS)),
    "a mapping in a YAML text": _backbone("class_path: planted.X\ninit_args: {}"),
    "a file of YAML": _backbone("./planted.yaml"),
    "a file of YAML without a suffix": _backbone("planted_file"),
    "a dotted key": lambda model: model.update({"backbone.class_path": "planted.X"}),
    "an earlier name": _backbone({"class_path": "callbacks.X"}),
    "an earlier name as a file": lambda model: model.update(init_from="callbacks.X"),
    "a re-export": _backbone({"class_path": "torch.nn.modules.module.os.system", "init_args": {"command": "touch x"}}),
    "a re-export of ours": lambda model: model.update(loss="bnfree.files.os.system"),
    "an estimator": _in_backbone(estimator="planted.X"),
    "a normaliser": _in_backbone(norm="planted.X"),
    "a head": _in_backbone(head="planted.X"),
    "a loss": lambda model: model.update(loss="planted.X"),
    "a loss with a hyphen": lambda model: model.update(loss="planted-too.X"),
    "a class path with a hyphen": _backbone({"class_path": "planted-too.X"}),
    "a class path alone with a hyphen": _backbone("planted-too.X"),
    "an estimator with a hyphen": _in_backbone(estimator="planted-too.X"),
    "an optimizer with a hyphen": lambda model: model.update(optimizer={"class_path": "planted-too.X"}),
    "a module with a hyphen": _whole("planted-too.X"),
    "the module": _whole("planted.X"),
    "a function as the module": _whole("torch.fx.graph_module.reduce_graph_module"),
    "an instantiator": lambda model: model.update(_instantiator="planted.X", loss="planted.X"),
    "another key": lambda model: model.update(dict_kwargs={"x": CLASS}),
}  # fmt: skip


@pytest.fixture
def stranger(project):
    """The working directory, with a module and a file that a stranger has left; they must not be touched."""
    for name in ("planted.py", "planted-too.py", "callbacks.py"):
        (project / name).write_text(MODULE)
    for name in ("planted.yaml", "planted_file"):
        (project / name).write_text(yaml.safe_dump(CLASS))
    users_words.forget()
    return project


def _changed(source, target, way):
    """A copy of a file in which the config is another; every checksum in it stays right."""
    content = torch.load(EARLIER / source, weights_only=True)
    model = copy.deepcopy(dict(content["hyper_parameters"]))
    way(model)
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    torch.save({**content, "hyper_parameters": model}, target)
    return target


def _config(target, way):
    """A config with the same changes."""
    config = yaml.safe_load((EARLIER / "run" / "config.yaml").read_text())
    model = config["model"]["init_args"]
    way(model)
    config["model"]["class_path"] = model.pop("_class_path", config["model"]["class_path"])
    model.pop("_instantiator", None)
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(target).write_text(yaml.safe_dump(config))
    return target


def _loose(way):
    _changed("run/checkpoints/last.ckpt", "loose.ckpt", way)


def _run(way):
    shutil.copytree(EARLIER / "run", "run", dirs_exist_ok=True)
    _config("run/config.yaml", way)


def _ticket(way):
    _changed("lottery/seed_0/level_01/ticket.pt", "alone/ticket.pt", way)


def _ticket_in_run(way):
    _run(lambda model: None)
    _changed("lottery/seed_0/level_01/ticket.pt", "run/ticket.pt", way)


def _teacher(way):
    _changed("run/checkpoints/last.ckpt", "teacher.ckpt", way)


DISTILLED = [
    "fit", "--model=bnfree.lightning_modules.DistilledClassifier", "--model.backbone=bnfree.backbones.ReActNet18",
    "--model.backbone.num_classes=10", "--model.backbone.in_channels=1", "--model.backbone.width=4",
    "--model.teacher.weights=teacher.ckpt", "--data=bnfree.datamodules.DigitsDataModule", "--trainer.fast_dev_run=1",
]  # fmt: skip
STRETCH = ["ticket", "stretch", "alone/ticket.pt", "--blocks_per_stage=6,6,6,6", "--output=new.pt"]
COMMANDS = {
    "test": (_loose, ["test", "--ckpt_path=loose.ckpt"]),
    "validate": (_loose, ["validate", "--ckpt_path=loose.ckpt"]),
    "predict": (_loose, ["predict", "--ckpt_path=loose.ckpt"]),
    "fit": (_loose, ["fit", "--ckpt_path=loose.ckpt", "--trainer.max_epochs=3"]),
    "summary": (_loose, ["summary", "loose.ckpt"]),
    "export": (_loose, ["export", "loose.ckpt"]),
    "test of a run": (_run, ["test", "--ckpt_path=run/checkpoints/last.ckpt"]),
    "fit of a run": (_run, ["fit", "--ckpt_path=last", "--run_dir=run", "--trainer.max_epochs=3"]),
    "summary of a run": (_run, ["summary", "run"]),
    "export of a run": (_run, ["export", "run/checkpoints/last.ckpt"]),
    "test of a ticket": (_ticket, ["test", "--ckpt_path=alone/ticket.pt"]),
    "test of a ticket in a run": (_ticket_in_run, ["test", "--ckpt_path=run/ticket.pt"]),
    "summary of a ticket": (_ticket, ["summary", "alone/ticket.pt"]),
    "stretch": (_ticket, STRETCH),
    "squeeze": (_ticket, ["ticket", "squeeze", "alone/ticket.pt", "--blocks_per_stage=1,1,1,1", "--output=new.pt"]),
    "stretch to": (_ticket, ["ticket", "stretch", EARLIER / "lottery/seed_0/level_01/ticket.pt", "--to=alone/ticket.pt",
                             "--output=new.pt"]),
    "transfer to": (_loose, ["ticket", "transfer", EARLIER / "lottery/seed_0/level_01/ticket.pt", "--to=loose.ckpt",
                             "--output=new.pt"]),
    "transfer to a run": (_run, ["ticket", "transfer", EARLIER / "lottery/seed_0/level_01/ticket.pt", "--to=run",
                                 "--output=new.pt"]),
    "a teacher": (_teacher, DISTILLED),
}  # fmt: skip
# These say what they can without the network.
LENIENT = {
    "ticket info": (_ticket, ["ticket", "info", "alone/ticket.pt"]),
    "ticket diff": (_ticket, ["ticket", "diff", "alone/ticket.pt", "alone/ticket.pt"]),
    "init_from": (_loose, ["fit", "--config", EARLIER / "run/config.yaml", "--model.init_from=loose.ckpt",
                           "--trainer.fast_dev_run=1"]),
    "report": (_run, ["report", "run"]),
}  # fmt: skip


# One of each kind of trick, for the quick tests.
SOME = ("a function as backbone", "a file of YAML", "a loss")


def _refused(command, way, bnfree, directory):
    make, words = COMMANDS[command]
    users_words.forget()
    make(WAYS[way])
    code, _, err = bnfree(*words)
    assert not (directory / MARKER).exists()
    # Of a teacher's file nothing but the backbone is looked at.
    assert code == 2 or command == "a teacher"
    lines = [line for line in err.splitlines() if line.startswith("bnfree: error: ")]
    assert len(lines) == (code == 2), err
    assert "Traceback" not in err
    assert code == 0 or len(lines[0]) < 600
    return lines[0] if lines else ""


@pytest.mark.parametrize("way", WAYS)
def test_no_way_to_name_a_class_leads_to_it(stranger, bnfree, way):
    _refused("test", way, bnfree, stranger)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_imports_or_calls_what_a_strangers_file_names(stranger, bnfree, command):
    for way in SOME:
        line = _refused(command, way, bnfree, stranger)
        if way == "a function as backbone":
            assert "torch.fx.graph_module.reduce_graph_module" in line
            assert "--allow_classes=torch.fx.graph_module.reduce_graph_module" in line
            assert any(f"{name}=" in line for name in ("ckpt_path", "config", "to", "ticket", "teacher.weights"))


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_falls_for_any_way(stranger, bnfree, command):
    for way in WAYS:
        _refused(command, way, bnfree, stranger)


@pytest.mark.parametrize("command", LENIENT)
def test_what_needs_no_network_goes_on_without_it(stranger, bnfree, command):
    make, words = LENIENT[command]
    for way in SOME:
        users_words.forget()
        make(WAYS[way])
        code, _, err = bnfree(*words)
        assert not (stranger / MARKER).exists(), way
        assert code in (0, 2)
        assert "Traceback" not in err


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["lottery"].update(score="planted.X"),
        lambda content: content["lottery"].update(scope="planted.X"),
        lambda content: content["options"].append("--model.backbone=planted.X"),
        lambda content: content["options"].append("--model.loss=planted.X"),
        lambda content: content["options"].append("--config=planted.yaml"),
        lambda content: content.update(fit={"configs": ["planted.yaml"], "options": {}, "arguments": []}),
        lambda content: content.update(fit={"configs": [], "options": {"model.loss": "planted.X"}, "arguments": []}),
    ],
)
def test_the_settings_of_a_strangers_lottery(stranger, complaint, change):
    shutil.copytree(EARLIER / "lottery", "lottery")
    content = yaml.safe_load(Path("lottery/lottery.yaml").read_text())
    content["options"] = [word for word in content["options"] if "--config" not in word]
    change(content)
    Path("lottery/lottery.yaml").write_text(yaml.safe_dump(content))
    users_words.forget()
    assert "planted" in complaint("lottery", "controls", "lottery")
    assert not (stranger / MARKER).exists()
