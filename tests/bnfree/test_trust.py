import json
import os
import stat
import sys

import pytest

from bnfree import trust, user_key, users_words
from bnfree.errors import InputError

OWN = {"class_path": "my_package.Net", "init_args": {"width": 4, "stem": {"class_path": "my_package.Stem"}}}


@pytest.fixture(autouse=True)
def nobody(monkeypatch):
    """A process in which nobody has said anything, before and after."""
    monkeypatch.setattr(trust, "_approved", set())
    users_words.forget()
    yield
    users_words.forget()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Makes a home of a user; the process is theirs from then on."""

    def of(name):
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / name))
        monkeypatch.setattr(trust, "_approved", set())
        users_words.forget()
        return tmp_path / name / "bnfree" / "key"

    return of


def refusal(content):
    with pytest.raises(InputError) as error:
        trust.check(content, "file='x.ckpt'")
    sentence = str(error.value)
    assert sentence.startswith("file='x.ckpt' names ")
    return sentence


@pytest.mark.parametrize(
    "path",
    [
        "torch.nn.Linear", "torch.optim.Adam", "torch.optim.lr_scheduler.CosineAnnealingLR",
        "torchvision.models.ResNet", "bnfree.backbones.ReActNet18", "bnfree.datamodules.DigitsDataModule",
        "lightning_modules.ImageClassifier",
        "callbacks.WeightDynamics", "lightning.pytorch.callbacks.EarlyStopping", "bnfree.binarize.ClippedIdentity",
        "lightning.pytorch.loggers.CSVLogger", "bnfree.losses.cross_entropy", "bnfree.normalizers.none.none",
    ],
)  # fmt: skip
def test_what_runs_are_made_of_may_stand_in_any_file(path):
    trust.check({"model": {"class_path": path, "init_args": {"loss": path}}}, "file='x.ckpt'")


@pytest.mark.parametrize(
    "path",
    [
        "torch.fx.graph_module.reduce_graph_module", "os.system", "my_package.Net", "torch.nn.functional.relu",
        "torch.nn.modules.module.os.system", "bnfree.files.os.system", "bnfree.__main__.main", "torch.load",
        "torch.nn.modules.module.Tensor", "bnfree.lightning_modules.cli.main", "torchvision.models.resnet18",
        "bnfree.lightning_modules.training.command_line.TrainingCLI", "callbacks.nothing.X", "torch.nn.Nothing",
        "bnfree.plugins.importlib.import_module", "torch.hub.load", "lightning.pytorch.loggers.WandbLogger",
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "place",
    [
        lambda path: {"class_path": path},
        lambda path: {"model": [{"deep": {"class_path": path, "init_args": {}}}]},
        lambda path: {"loss": path},
        lambda path: {"backbone": json.dumps({"class_path": path})},
        lambda path: {"backbone": f"- class_path: {path}"},
        lambda path: {"model": {"class_path": "torch.nn.Sequential", "init_args": {"x": path}}},
        lambda path: {"arguments": [f"--model.backbone={path}"]},
        lambda path: {"model.backbone.class_path": path},
    ],
)
def test_nothing_else_may(path, place):
    assert repr(path) in refusal(place(path))


def test_nothing_is_imported_to_find_out(tmp_path, monkeypatch):
    for name in ("planted", "callbacks"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for path in ("planted.X", "callbacks.X", "callbacks.WeightDynamics.x"):
        refusal({"class_path": path})
        refusal({"data_dir": "callbacks.X"})
    assert "planted" not in sys.modules


def test_names_of_files_are_no_classes_where_files_belong(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.pt").touch()
    (tmp_path / "planted").touch()
    trust.check({"init_from": "weights.pt", "data_dir": "planted", "norm": "none", "stem": "cifar"}, "f")
    # A parser would read them as configs.
    refusal({"backbone": "planted"})
    refusal({"backbone": str(tmp_path / "planted")})
    refusal({"backbone": "https://example.org/config"})


def test_a_file_does_not_say_where_a_training_writes():
    trust.check({"dirpath": "checkpoints", "filename": "best"}, "f")
    for path in ("/etc/cron.d", "~/.ssh", "../../elsewhere"):
        assert "--allow_classes='*'" in refusal({"best_checkpoint": {"dirpath": path}})


def test_a_flag_permits_what_lies_under_a_name():
    users_words.take_allowed(["--allow_classes", "my_package,other.module"])
    trust.check({"a": OWN, "b": "other.module.function"}, "f")
    refusal({"a": "other.X"})
    refusal({"a": "my_package_too.X"})
    users_words.allow("*")
    trust.check({"a": "os.system"}, "f")


@pytest.mark.parametrize("words", [["--allow_classes"], ["--allow_classes="], ["--allow_classes=../x"]])
def test_a_flag_without_a_name_is_refused(words):
    with pytest.raises(InputError, match="allow_classes"):
        users_words.take_allowed(words)


def test_what_the_user_names_files_may_name_and_no_more(tmp_path, monkeypatch):
    (tmp_path / "my_words.py").write_text("class Net: pass\nclass Other: pass\ndef function(): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    users_words.note(["fit", "--model.backbone=my_words.Net", "--model.loss=torch.nn.functional.relu", "--x=a.ckpt"])
    trust.check({"a": {"class_path": "my_words.Net"}, "b": "my_words.Other", "c": "torch.nn.functional.relu"}, "f")
    # A function is not a class of the package, and torch is everybody's.
    refusal({"a": "my_words.function"})
    refusal({"a": "torch.nn.functional.gelu"})
    refusal({"a": "a.X"})
    # Nor does a class of the user's speak for its arguments.
    refusal({"class_path": "my_words.Net", "init_args": {"x": {"class_path": "os.system"}}})


def test_the_same_user_goes_on_and_no_other(home):
    key = home("mine")
    trust.approve(OWN)
    signed = trust.signatures(OWN)
    assert len(signed) == 1
    assert key.stat().st_size == 32
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    home("mine")
    refusal(OWN)
    trust.approve_signed(OWN, signed)
    trust.check(OWN, "f")
    # As a part of what was signed it was run, too.
    trust.check(OWN["init_args"]["stem"], "f")
    home("theirs")
    trust.approve_signed(OWN, signed)
    refusal(OWN)


def test_a_copied_signature_is_good_for_the_same_arguments_alone(home):
    home("mine")
    trust.approve(OWN)
    signed = trust.signatures({"backbone": OWN})
    for other in (
        {**OWN, "init_args": {**OWN["init_args"], "width": 5}},
        {**OWN, "init_args": {}},
        {**OWN, "dict_kwargs": {"x": 1}},
        {**OWN, "class_path": "my_package.Other"},
        {"class_path": "my_package.Stem", "init_args": {"x": OWN}},
    ):
        home("mine")
        trust.approve_signed({"backbone": other}, signed)
        refusal({"backbone": other})
    home("mine")
    trust.approve_signed({"_class_path": "my_package.Net", **OWN["init_args"], "_instantiator": "x"}, signed)
    # The form of a checkpoint's hyper-parameters is the same class.
    trust.check(OWN, "f")


def test_only_what_has_passed_is_signed(home):
    home("mine")
    assert trust.signatures({"a": OWN}) == []
    users_words.allow("my_package")
    trust.check({"a": OWN}, "f")
    assert len(trust.signatures({"a": OWN, "b": "os.system"})) == 1
    assert trust.signatures({"b": "bnfree.backbones.ReActNet18"}) == []


@pytest.mark.parametrize("signed", [None, 3, "x", [], ["ä"], [None], {"a": 1}, ["0" * 64]])
def test_no_signature_is_none(home, signed):
    home("mine")
    trust.approve_signed(OWN, signed)
    refusal(OWN)


def test_signatures_stand_in_a_comment_of_a_config(home):
    home("mine")
    trust.approve(OWN)
    line = trust.signature_comment(OWN)
    assert line.startswith("# ")
    assert trust.signatures_in(f"# bnfree 1\n{line}model: x\n") == trust.signatures(OWN)
    assert trust.signature_comment({"a": "torch.nn.Linear"}) == ""


@pytest.mark.skipif(os.name != "posix", reason="modes of files are those of POSIX")
def test_a_key_that_others_can_read_is_none(home):
    key = home("mine")
    trust.approve(OWN)
    signed = trust.signatures(OWN)
    key.chmod(0o644)
    assert user_key.signature(b"x") is None
    trust._approved.clear()
    trust.approve_signed(OWN, signed)
    refusal(OWN)


def test_without_a_home_nothing_is_signed_and_nothing_fails(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    trust.approve(OWN)
    assert trust.signatures(OWN) == []


def test_a_key_is_never_replaced(home):
    home("mine")
    first = user_key.signature(b"x", create=True)
    assert user_key._create() is not None
    assert user_key.signature(b"x") == first


def test_bombs_are_refused_at_once():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    rope = ["x"]
    for _ in range(60):
        rope = [rope, rope]
    for bomb in (deep, rope, {"a": list(range(10**6))}, {"a": "[" * 10**6}, {"a": ["{a: 1}" * 100] * 10**4}):
        with pytest.raises(InputError, match="more deeply nested"):
            trust.check(bomb, "f")
