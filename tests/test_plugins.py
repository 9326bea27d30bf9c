"""Plugins are complete: each has a line in the table, and each overlay parses and trains a batch."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from small_data import write_cifar

from bnfree.backbones import ReActNet18
from bnfree.datamodules.score_subsets import write_scores
from bnfree.lightning_modules import ImageClassifier
from bnfree.lightning_modules.training.config.shipped import shipped_configs, shipped_folders, shipped_plugins
from bnfree.lightning_modules.training.parsed_fit import parse_fit
from bnfree.lightning_modules.training.settings import FitSettings
from bnfree.plugins import BUILT_IN, imported, resolve
from bnfree.tickets.key_files import write_owner_key
from bnfree.tickets.keyed import new_key

ROOT = Path(__file__).parents[1]
TABLE = (ROOT / "docs" / "plugins.md").read_text()
OVERLAYS = shipped_plugins()
# What an overlay needs besides it, here: in Python, and as words of a command.
PACKAGES = {"schedule_free": "schedulefree"}
MORE = {name: {"teacher": ReActNet18(10, in_channels=1, width=2)} for name in ("discriminator", "correct_teacher")}
WORDS = {name: ["--model.teacher.weights=teacher.ckpt"] for name in MORE} | {"data_diet": ["--data.scores=scores.csv"]}
# Of quickstart's digits, which are grey and not mirrored, some can say nothing.
COLOURED = {"alternating_flip"}


def rows():
    """The rows of the table by kind: name, what it changes, source, cost, tried on."""
    found = {}
    for section in TABLE.split("\n## ")[1:]:
        (kind,) = re.findall(r"\(`(\w+)`\)", section.partition("\n")[0])
        cells = [re.split(r"(?<!\\)\|", row)[1:-1] for row in re.findall(r"^\| `.*\|$", section, re.MULTILINE)]
        found[kind] = {row[0].strip(" `"): [cell.strip() for cell in row[1:]] for row in cells}
    return found


def test_the_table_has_every_plugin_and_no_other():
    assert {kind: set(names) for kind, names in rows().items()} == {
        kind: set(names) for kind, names in BUILT_IN.items()
    }


def test_every_row_says_what_why_and_for_how_much():
    for kind, plugins in rows().items():
        for name, cells in plugins.items():
            assert len(cells) == 4, (kind, name)
            assert all(cells), (kind, name)


@pytest.mark.parametrize("kind", BUILT_IN)
def test_every_line_leads_somewhere(kind):
    for name in BUILT_IN[kind]:
        assert resolve(kind, name) is not None


def test_names_of_overlays_are_no_names_of_recipes():
    recipes, plugins = shipped_folders()
    assert not {path.stem for path in recipes.glob("*.yaml")} & {path.stem for path in plugins.glob("*.yaml")}
    assert set(OVERLAYS) <= set(shipped_configs())


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_says_how_it_is_used(name):
    first = OVERLAYS[name].read_text().partition("\n")[0]
    assert re.fullmatch(rf"# bnfree (fit|lottery run) .*--config {name}( .*)?", first), first


def build(place, *arguments, **keywords):
    """An object of a config: a class path, or a class path with arguments."""
    if isinstance(place, str):
        return imported(place, "class")(*arguments, **keywords)
    return imported(place["class_path"], "class")(*arguments, **{**place.get("init_args", {}), **keywords})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_overlay_is_a_config(tmp_path, monkeypatch):
    """One parser for all of them, since to build one takes most of a command's time."""
    monkeypatch.chdir(tmp_path)
    parser = parse_fit(FitSettings("quickstart")).parser
    base = str(shipped_configs()["quickstart"])
    for name, path in OVERLAYS.items():
        config = parser.parse_args(["fit", "--config", base, "--config", str(path), *WORDS.get(name, ())]).fit
        said = yaml.safe_load(path.read_text())
        backbone = said.get("model", {}).get("init_args", {}).get("backbone", {}).get("init_args", {})
        for key, value in backbone.items():
            found = config.model.init_args.backbone.init_args[key]
            if isinstance(value, dict):
                assert found.class_path == value["class_path"], name
                assert value["init_args"].items() <= found.init_args.as_dict().items(), name
            else:
                assert found == value, name


@pytest.mark.parametrize("name", OVERLAYS)
@pytest.mark.filterwarnings("ignore")
def test_an_overlay_trains_a_batch(name, tmp_path, monkeypatch):
    """In plain Python from what the file says, since a command takes ten times as long."""
    monkeypatch.chdir(tmp_path)
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    said = yaml.safe_load(OVERLAYS[name].read_text())
    assert set(said) <= {"model", "trainer", "data"}
    model = said.get("model", {})
    options = {**model.get("init_args", {}), **MORE.get(name, {})}
    network = {"class_path": "bnfree.backbones.ReActNet18", **options.pop("backbone", {})}
    # As a config's factories: what is called with more than the file says.
    parts = {key: partial(build, v) for key, v in network.get("init_args", {}).items() if isinstance(v, dict)}
    if network["class_path"] == "bnfree.backbones.ReActNet18":
        parts["blocks_per_stage"] = [1, 1, 1, 1]
    backbone = build(network, **{"num_classes": 10, "in_channels": 3 if name in COLOURED else 1, "width": 4, **parts})
    if "optimizer" in options:
        optimizer = options["optimizer"]
        arguments = {"class_path": "torch.optim.Adam", **optimizer}
        options["optimizer"] = partial(build, arguments)
    if isinstance(options.get("loss"), dict):
        options["loss"] = build(options["loss"])
    options = {"calibration_images": 4, **options}
    module = build(model.get("class_path", "bnfree.lightning_modules.ImageClassifier"), backbone, **options)
    assert isinstance(module, ImageClassifier)
    trainer = dict(said.get("trainer", {}))
    callbacks = [build(callback) for callback in trainer.pop("callbacks+", [])]
    source = {"class_path": "bnfree.datamodules.DigitsDataModule", **said.get("data", {})}
    more_data = {"batch_size": 4}
    if name == "data_diet":
        write_scores("scores.csv", [""] * 1437, range(1437), range(1437))
        more_data["scores"] = "scores.csv"
    if name in COLOURED:
        write_cifar(tmp_path, 10)
        source["class_path"] = "bnfree.datamodules.CIFAR10DataModule"
        more_data |= {"data_dir": str(tmp_path), "val_split": 10}
    data = build(source, **more_data)
    if name == "ownership_triggers":
        write_owner_key(new_key(), Path("owner.key"))
    before = {key: value.clone() for key, value in module.state_dict().items()}
    Trainer(
        accelerator="cpu", fast_dev_run=1, enable_progress_bar=False, enable_model_summary=False, logger=False,
        callbacks=callbacks, **trainer,
    ).fit(module, datamodule=data)  # fmt: skip
    after = module.state_dict()
    assert any(not torch.equal(value, after[key]) for key, value in before.items())
    assert isinstance(backbone, ReActNet18) or name in MORE
    assert all(value.isfinite().all() for value in after.values() if value.is_floating_point())
