"""`bnfree summary`: configs, runs and checkpoints, as a table and as JSON, without data and without a run."""

import json
import os
import re
import shutil
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

from bnfree.backbones import ReActNet18
from bnfree.costs import count_ops
from bnfree.lightning_modules.cli import main
from bnfree.packing import pretrained_path
from bnfree.tickets import Ticket, apply, prune, save_ticket

CONFIGS = Path(__file__).parents[3] / "configs"
PACKED = pretrained_path("digits_reactnet18")
TOTALS = (
    "bops", "bops_on_real_input", "flops", "ops", "binary_params", "real_params", "density", "bytes_packed",
    "bytes_float32",
)  # fmt: skip

MODULE = """
import torch
from lightning.pytorch import LightningModule
from torch import nn

from toy_project import ToyNet


class Costly(nn.Module):
    def __init__(self):
        raise RuntimeError("built for nothing")


class Taught(LightningModule):
    def __init__(self, backbone: nn.Module, teacher: nn.Module):
        super().__init__()
        self.backbone, self.teacher = backbone, teacher


class Whole(LightningModule):
    def __init__(self, width: int = 3):
        super().__init__()
        self.net = ToyNet(width)
        self.bias = nn.Parameter(torch.zeros(2))

    def forward(self, images):
        return self.net(images) + self.bias
"""


@pytest.fixture
def summary(bnfree):
    """Runs `bnfree summary --json`, which must succeed; returns what it says."""

    def run(*arguments):
        code, out, err = bnfree("summary", *arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run directory of a binary network on digits, one step long; not to be changed."""
    directory = tmp_path_factory.mktemp("digits") / "run"
    options = [
        "--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1",
        "--trainer.log_every_n_steps=1", "--model.calibration_images=8", "--data.image_size=8",
        "--test_after_fit=false",
    ]  # fmt: skip
    with mock.patch.dict(os.environ), mock.patch.object(sys, "path", list(sys.path)):
        config = f"--config={CONFIGS / 'quickstart.yaml'}"
        assert main(["fit", config, f"--run_dir={directory}", "--model.backbone.width=4", *options]) == 0
    return directory


def own_module(project):
    (project / "own_module.py").write_text(MODULE)


def pruned_copy(run, path):
    """The run's last checkpoint with every second weight of one layer masked."""
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    state, layer = content["state_dict"], "backbone.body.0.0.convolution"
    state[f"{layer}.mask"] = torch.arange(144).view_as(state[f"{layer}.weight"]) % 2 == 0
    torch.save(content, path)
    return path


def test_counts_of_a_config_are_those_of_its_network(summary):
    said = summary(CONFIGS / "quickstart.yaml", "--model.backbone.width=8")
    cost = count_ops(ReActNet18(10, width=8, in_channels=1), (1, 16, 16))
    assert set(said) == {"network", "checkpoint", "image_shape", "totals", "layers", "uncounted"}
    assert (said["network"], said["checkpoint"], said["image_shape"]) == ("ReActNet18", None, [1, 16, 16])
    assert said["totals"] == {name: getattr(cost, name) for name in TOTALS}
    assert [row["name"] for row in said["layers"]] == [row.name for row in cost.rows]
    for row, expected in zip(said["layers"], cost.rows, strict=True):
        values = {name: getattr(expected, name) for name in row}
        assert row == {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


@pytest.mark.parametrize(
    ("config", "options", "shape"),
    [
        ("quickstart", ["--data.image_size=24"], [1, 24, 24]),
        ("fashion_mnist", ["--data.data_dir=nowhere"], [1, 28, 28]),
        ("cifar100_step1", ["--data.data_dir=nowhere"], [3, 32, 32]),
        ("cifar10_small", ["--data.data_dir=nowhere"], [3, 32, 32]),
        ("imagenet_reactnet_a_step2", ["--data.data_dir=nowhere"], [3, 224, 224]),
    ],
)
def test_the_shape_is_known_without_the_data(summary, project, config, options, shape):
    before = set(project.iterdir())
    said = summary(CONFIGS / f"{config}.yaml", "--model.backbone.width=2", *options)
    assert said["image_shape"] == shape
    assert set(project.iterdir()) == before


@pytest.mark.parametrize("given", ["1,12,20", "1x12x20", "[1, 12, 20]", "(1,12,20)"])
def test_the_users_shape_wins(summary, given):
    said = summary("--image_shape", given, CONFIGS / "quickstart.yaml", "--model.backbone.width=2")
    assert said["image_shape"] == [1, 12, 20]


def test_overlays_and_config_options(summary):
    overlay = ("--config", CONFIGS / "batch_norm.yaml")
    plain, twin, same = (
        summary(*arguments, "--model.backbone.width=2")
        for arguments in (
            [CONFIGS / "quickstart.yaml"],
            [CONFIGS / "quickstart.yaml", *overlay],
            ["--config", CONFIGS / "quickstart.yaml", *overlay],
        )
    )
    assert twin == same
    assert twin["totals"]["ops"] == plain["totals"]["ops"]
    assert twin["totals"]["real_params"] > plain["totals"]["real_params"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("quickstart", []),
        ("quickstart", ["--model.backbone.binary_weights=false"]),
        ("imagenet_reactnet_a_step2", []),
    ],
)
def test_the_table_fits_its_columns_and_holds_every_layer(bnfree, name, options):
    images = ["--image_shape", "1,64,64", "--model.backbone.in_channels=1", "--model.backbone.num_classes=10"]
    code, out, _ = bnfree("summary", CONFIGS / f"{name}.yaml", *images, *options)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 120
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert lines["stem.convolution"][1:4] == ["W32A32", "1x64x64", "->"]
    assert lines["body.0.0.convolution"][1] == ("W32A1" if options else "W1A1")
    assert lines["classifier"][5] == "linear"
    assert ("step 1" in out) is bool(options)
    assert "MB packed" in out


def test_long_names_are_cut_at_their_beginning(bnfree, project):
    name = "a_name_that_is_far_too_long_for_the_column_of_names_in_a_table_of_costs"
    text = MODULE.replace("self.net =", f"self.{name} =").replace("self.net(", f"self.{name}(")
    (project / "own_module.py").write_text(text)
    _, out, _ = bnfree("summary", "--model=own_module.Whole", "--image_shape=1,2,2")
    assert max(map(len, out.splitlines())) <= 120
    assert "..." in out
    assert "of_costs.layers.1  W32A32" in out


def test_figures_of_the_table(bnfree):
    _, out, _ = bnfree("summary", CONFIGS / "cifar10_step2.yaml", "--model.backbone.binary_shortcut=true")
    assert "1.04e7 OPs = 5.54e8 BOPs / 64 + 1.77e6 FLOPs" in out
    assert "6.29e6 of the BOPs have a real input (W1A32)" in out
    assert "1.49 MB packed, 44.74 MB in float32: 30.1 times smaller" in out
    assert "body.1.0.projection   W1A32" in out


@pytest.mark.slow
def test_the_size_of_the_file_is_that_which_export_writes(run, bnfree, project):
    _, out, _ = bnfree("summary", run, "--image_shape=1,8,8")
    assert bnfree("export", run, "--output=exported.safetensors")[0] == 0
    size = (project / "exported.safetensors").stat().st_size
    shown = float(re.search(r"as a file of bnfree export.*: (\d+) kB$", out, re.MULTILINE)[1])
    # The names of ten classes and of the run are in it, too.
    assert size - 700 < 1000 * shown < size + 500
    _, out, _ = bnfree("summary", "cifar10_step1", "--model.backbone.width=4")
    assert "bnfree export" not in out


def test_run_directory_and_checkpoint_with_and_without_its_config(run, summary, tmp_path):
    last = run / "checkpoints" / "last.ckpt"
    of_run, of_file = summary(run), summary(last)
    assert of_run == of_file
    assert of_run["checkpoint"] == str(last)
    assert of_run["image_shape"] == [1, 8, 8]
    cost = count_ops(ReActNet18(10, width=4, in_channels=1), (1, 8, 8))
    assert of_run["totals"] == {name: getattr(cost, name) for name in TOTALS}
    alone = shutil.copy(last, tmp_path / "alone.ckpt")
    assert summary(alone, "--image_shape=1,8,8") == {**of_run, "checkpoint": str(alone)}


def test_a_run_directory_without_a_checkpoint_is_its_config(run, summary, project):
    shutil.copytree(run, project / "copy", ignore=shutil.ignore_patterns("checkpoints"))
    assert summary("copy") == {**summary(run), "checkpoint": None}


def test_masks_of_a_checkpoint_count(run, summary, tmp_path):
    dense, pruned = summary(run), summary(pruned_copy(run, tmp_path / "pruned.ckpt"), "--image_shape=1,8,8")
    densities = {row["name"]: row["density"] for row in pruned["layers"]}
    assert densities.pop("body.0.0.convolution") == 0.5
    assert set(densities.values()) == {1.0}
    assert pruned["totals"]["density"] < 1 == dense["totals"]["density"]
    bits = [sum(row["bits"] for row in said["layers"]) for said in (dense, pruned)]
    assert bits[1] - bits[0] == 144


def test_a_ticket_file_with_and_without_what_it_takes_to_build_its_network(run, summary, complaint, project):
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    network = ReActNet18(10, width=4, in_channels=1)
    apply(network, prune(network, 0.3))
    found = {"score": "standardized", "scope": "global", "density": 0.3}
    save_ticket(Ticket.of(network, config=content, **found), project / "ticket.pt")
    said = summary("ticket.pt", "--image_shape=1,8,8")
    cost = count_ops(network, (1, 8, 8))
    assert said["network"] == "ReActNet18"
    assert said["totals"] == {name: getattr(cost, name) for name in TOTALS}
    save_ticket(Ticket.of(network, **found), project / "bare.pt")
    options = [f"--config={CONFIGS / 'quickstart.yaml'}", "--model.backbone.width=4", "--image_shape=1,8,8"]
    assert summary("bare.pt", *options) == {**said, "checkpoint": "bare.pt"}
    assert "does not say which model it was written by" in complaint("summary", "bare.pt", "--image_shape=1,8,8")
    broken = torch.load("bare.pt", weights_only=True)
    broken["state_dict"]["classifier.bias"] += 1
    torch.save(broken, "bare.pt")
    assert "ckpt_path='bare.pt' is damaged or was edited" in complaint("summary", "bare.pt", *options)


def test_the_weights_of_a_checkpoint_are_read_not_those_of_a_fresh_network(run, summary, tmp_path):
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    content["state_dict"]["backbone.classifier.weight"][:5] = 0
    torch.save(content, tmp_path / "half.ckpt")
    said = summary(tmp_path / "half.ckpt", "--image_shape=1,8,8")
    assert said["layers"][-2]["name"] == "classifier"
    assert said["layers"][-2]["density"] == 0.5


def test_a_module_of_ones_own(trained, summary):
    said = summary(trained, "--image_shape=1,2,2")
    assert said["network"] == "ToyNet"
    assert said["totals"]["flops"] == 4 * 4 + 4 * 2
    assert said["totals"]["real_params"] == 4 * 4 + 4 + 4 * 2 + 2


def test_only_the_backbone_is_built(summary, project):
    own_module(project)
    networks = ["--model.backbone=toy_project.ToyNet", "--model.teacher=own_module.Costly"]
    said = summary("--model=own_module.Taught", *networks, "--image_shape=1,2,2")
    assert said["network"] == "ToyNet"


def test_a_module_without_a_backbone_is_counted_whole(summary, project):
    own_module(project)
    said = summary("--model=own_module.Whole", "--model.width=5", "--image_shape=1,2,2")
    assert said["network"] == "Whole"
    assert said["totals"]["flops"] == 4 * 5 + 5 * 2


def test_help_shows_its_own_options_and_not_those_of_training(bnfree):
    code, out, _ = bnfree("summary", "--help")
    assert code == 0
    for word in ("CONFIG|RUN|CHECKPOINT", "--image_shape", "--json", "--model"):
        assert word in out
    assert "--trainer" not in out
    code, out, _ = bnfree("summary", "--model.help", "ImageClassifier")
    assert code == 0
    assert "--model.backbone" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the network is not given; name a YAML config, a run directory or a checkpoint"),
        (["nothing"], "'nothing' does not exist; give a YAML config"),
        (["toi.yaml"], "config='toi.yaml' does not exist; did you mean 'toy.yaml'?"),
        (["gone.ckpt"], "ckpt_path='gone.ckpt' does not exist"),
        (["."], "'.' is a directory without config.yaml"),
        (["data.yaml"], "model is required and not given"),
        (["list.yaml"], "config='list.yaml' holds no keys such as model"),
        (["broken.yaml"], "config='broken.yaml', line 2, column 1: this is not YAML"),
        ([PACKED], "' is a file of safetensors, such as the packed networks of bnfree"),
        (["digits_reactnet18"], "'digits_reactnet18' is a pretrained packed network, which predict, test, bench"),
        (["bad.ckpt"], "ckpt_path='bad.ckpt' cannot be read as a checkpoint: it is damaged or incomplete"),
        (["toy.yaml"], "image_shape is not given, and ToyData does not say it; add --image_shape=C,H,W."),
        (["--model=toy_project.ToyModule", "--model.backbone=toy_project.ToyNet"], "there is no data section"),
        (["toy.yaml", "--image_shape=1,2"], "image_shape='1,2' must be three integers"),
        (["toy.yaml", "--image_shape=3,9,9"], "image_shape=(3, 9, 9) does not go through ToyNet ("),
        (["toy.yaml", "--jsn"], "option '--jsn' is not known; did you mean '--json'?"),
        (["toy.yaml", "--image_shap=1,2,2"], "did you mean '--image_shape'?"),
        (["toy.yaml", "--model.backbone.widht=3"], "model.backbone.widht is not an argument of ToyNet; did you mean"),
        (["toy.yaml", "--model.backbone=Toy"], "names no known class"),
        (["toy.yaml", "other.yaml"], "argument 'other.yaml' is not expected"),
        (["toy.yaml", "--model.backbone=ReActNet18", "--model.backbone.width=0"], "width=0 must be at least 1."),
    ],
)
def test_mistakes_are_one_sentence(project, complaint, arguments, said):
    (project / "data.yaml").write_text("data: {class_path: toy_project.ToyData}\n")
    (project / "list.yaml").write_text("- model\n")
    (project / "broken.yaml").write_text("model: [\n")
    (project / "bad.ckpt").write_bytes(b"PK\x03\x04 not a checkpoint")
    assert said in complaint("summary", *arguments)


def test_a_checkpoint_that_does_not_fit(trained, project, complaint):
    said = complaint("summary", trained, "--model.backbone.width=7", "--image_shape=1,2,2")
    assert "written by ToyModule with ToyNet, does not fit ToyNet" in said
    assert "'layers.1.bias'" in said
    assert "with shape (4,) in place of (7,)" in said
