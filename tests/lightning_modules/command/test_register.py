"""`bnfree export --register`: a name, a card, and what is refused before anything is written."""

import json
import shutil

import pytest
import yaml
from small_digits import train_digits

from bnfree.lightning_modules.command import register
from bnfree.packing.registry import read_registry, users_registry


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run directory of a network on digits; not to be changed."""
    return train_digits(tmp_path_factory.mktemp("register") / "seed0")


@pytest.fixture
def best(run, project, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(project / "data"))
    shutil.copytree(run, project / "runs" / "seed0")
    return project / "runs" / "seed0" / "checkpoints" / "best.ckpt"


def test_a_name_and_a_card_come_from_the_run(bnfree, best, project, monkeypatch):
    monkeypatch.setattr(register, "is_available", lambda engine: False)
    monkeypatch.setattr(register, "SECONDS", 0.05)
    for seed in (1, 2):
        other = project / "runs" / f"seed{seed}"
        shutil.copytree(best.parents[1], other)
        config = yaml.safe_load((other / "config.yaml").read_text())
        config["seed_everything"] = seed
        (other / "config.yaml").write_text(yaml.safe_dump(config))
    # A run of other settings is none of them.
    config["model"]["init_args"]["backbone"]["init_args"]["width"] = 5
    shutil.copytree(best.parents[1], project / "runs" / "wider")
    (project / "runs" / "wider" / "config.yaml").write_text(yaml.safe_dump(config))
    code, out, err = bnfree("export", best, "--register=mine", "--url=https://example.org/mine.safetensors")
    assert code == 0, err
    assert "Registered as mine" in out
    entry = read_registry(users_registry())["mine"]
    assert entry.file == best.with_suffix(".safetensors")
    assert entry.url == "https://example.org/mine.safetensors"
    card = users_registry().with_name("mine.md").read_text()
    for part in (
        "DigitsDataModule", "CC BY 4.0", entry.sha256, f"{entry.size} bytes", "ms an image", "of 3 seeds", "± 0.00",
        "bnfree fit --config config.yaml", "| epoch | train/acc | val/acc | train/loss | val/loss |", "width: 4",
        "https://example.org/mine.safetensors", "bnfree predict --model mine",
    ):  # fmt: skip
        assert part in card, part
    assert str(project) not in card
    assert json.loads(bnfree("predict", "--model=mine", "--json", "--engine=torch", picture(project))[1])


def picture(project):
    from PIL import Image

    Image.new("L", (8, 8), 90).save(project / "picture.png")
    return project / "picture.png"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--url=https://example.org"], "url goes with register; add --register=NAME"),
        (["--registry=here.json"], "registry goes with register"),
        (["--register=a/b"], "name='a/b' must begin with a letter or digit"),
        (["--register=a", "--url=ftp://a"], "url='ftp://a' of a must begin with https:// or http://"),
        (["--register=a", "--format=onnx"], "register='a' goes with the format packed"),
        (["--register=taken"], "register='taken' is taken in"),
    ],
)
def test_mistakes_are_one_sentence_and_write_nothing(complaint, best, options, said):
    users_registry().parent.mkdir(parents=True)
    taken = {"sha256": "0" * 64, "size": 1, "file": "a.safetensors"}
    users_registry().write_text(json.dumps({"version": 1, "networks": {"taken": taken}}))
    before = users_registry().read_bytes(), sorted(best.parent.iterdir())
    assert said in complaint("export", best, *options)
    assert before == (users_registry().read_bytes(), sorted(best.parent.iterdir()))
