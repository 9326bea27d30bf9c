"""The examples in CONTRIBUTING.md are run as they are printed: from files of a foreign directory, by the command."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer

from bnfree.lightning_modules import ImageClassifier

ROOT = Path(__file__).parents[1]
# A console script does not find the modules of the directory that it is called from.
CONSOLE = "import sys\nfrom bnfree.lightning_modules.cli import main\nsys.exit(main())\n"


def blocks():
    """The examples by the file that their first line names."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    found = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", text, re.DOTALL)
    assert len(found) == text.count("```python") + text.count("```yaml")
    return dict(found)


def example(name):
    names = {}
    exec(blocks()[name], names)
    return names


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A directory that holds the examples and nothing of this project, and the command in another."""
    directory = tmp_path_factory.mktemp("elsewhere")
    for name, code in blocks().items():
        (directory / name).write_text(code)
    return directory


@pytest.fixture(scope="module")
def command(elsewhere, tmp_path_factory):
    """Runs the command as a process of its own; returns what it prints."""
    script = tmp_path_factory.mktemp("bin") / "console.py"
    script.write_text(CONSOLE)

    def run(*arguments, code=0, directory=elsewhere, path=()):
        paths = os.pathsep.join(map(str, (ROOT, *path)))
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        done = subprocess.run(
            [sys.executable, str(script), *map(str, arguments)],
            cwd=directory, env=environment, capture_output=True, text=True, timeout=1200,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else done.stderr

    return run


@pytest.mark.parametrize("name", blocks())
def test_no_example_is_longer_than_25_lines(name):
    assert blocks()[name].count("\n") <= 25


def test_the_estimator_has_its_own_gradient():
    from bnfree.binarize import sign

    x = torch.tensor([-0.5, 0.0, 2.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(sign(x, example("my_estimators.py")["Triangle"]).sum(), x)
    assert gradient.tolist() == [0.5, 1.0, 0.0]


def test_the_transform_is_in_front_of_signs_and_the_optimizer_steps_by_signs():
    from bnfree.backbones import ReActNet18

    torch.manual_seed(0)
    transform, optimizer = example("my_transforms.py")["Softsign"], example("my_optimizers.py")["SignDescent"]
    network = ReActNet18(num_classes=3, width=4, blocks_per_stage=[1, 1, 1, 1], weight_transform=transform)
    layer = network.body[0][0].convolution
    torch.testing.assert_close(layer.latent_weight(), layer.weight / (1 + layer.weight.abs()))
    before = layer.weight.detach().clone()
    network(torch.randn(2, 3, 16, 16)).square().sum().backward()
    optimizer(network.parameters(), lr=0.25).step()
    torch.testing.assert_close(before - layer.weight.detach(), 0.25 * layer.weight.grad.sign())


def test_backbone_data_module_and_callback_train_together(tmp_path):
    torch.manual_seed(0)
    network = example("my_networks.py")["TinyNet"](num_classes=2, width=8, in_channels=1)
    module = ImageClassifier(network, optimizer=lambda p: torch.optim.Adam(p, lr=0.01), calibration_images=32)
    balance = example("my_callbacks.py")["SignBalance"]()
    assert isinstance(balance, Callback)
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, callbacks=[balance],
    )  # fmt: skip
    trainer.fit(module, datamodule=example("my_data.py")["Checkerboards"](batch_size=20))
    assert trainer.callback_metrics["val/acc"] > 0.9
    assert 0.2 < trainer.callback_metrics["signs/positive"] < 0.8


FIT = ("--config", "quickstart", "--trainer.max_epochs=1", "--model.backbone.width=4", "--test_after_fit=false")
ON_THE_COMMAND_LINE = (
    "--model.backbone.estimator=my_estimators.Triangle",
    "--model.backbone.weight_transform=my_transforms.Softsign",
    "--model.backbone.norm=my_normalizers.RootMeanSquare",
    "--model.backbone.head=my_heads.NoBias",
    "--model.loss=my_losses.brier",
    "--model.optimizer=my_optimizers.SignDescent",
    "--trainer.callbacks+=my_callbacks.SignBalance",
)


def accuracy(printed):
    found = re.search(r"test/acc\D+([\d.]+)( %)?", printed)
    return float(found[1]) / (100 if found[2] else 1)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["yaml", "command_line"])
def test_parts_of_a_network_are_named_in_yaml_and_on_the_command_line(command, elsewhere, how):
    given = ("--config", "mine.yaml") if how == "yaml" else ON_THE_COMMAND_LINE
    command("fit", *FIT, *given, f"--run_dir={how}")
    config = yaml.safe_load((elsewhere / how / "config.yaml").read_text())
    options = config["model"]["init_args"]["backbone"]["init_args"]
    assert options["estimator"] == "my_estimators.Triangle"
    assert options["norm"] == "my_normalizers.RootMeanSquare"
    assert options["head"] == "my_heads.NoBias"
    assert config["model"]["init_args"]["loss"] == "my_losses.brier"
    assert config["model"]["init_args"]["optimizer"]["class_path"] == "my_optimizers.SignDescent"
    assert config["trainer"]["callbacks"][-1]["class_path"] == "my_callbacks.SignBalance"
    checkpoint = torch.load(elsewhere / how / "checkpoints" / "last.ckpt", weights_only=True)
    assert "backbone.classifier.bias" not in checkpoint["state_dict"]
    assert "backbone.stem.normalizer.weight" in checkpoint["state_dict"]
    assert "backbone.body.0.0.convolution.weight_transform.width" in checkpoint["state_dict"]
    # A fresh process, which knows the checkpoint alone: it lies in no run.
    (elsewhere / f"{how}.ckpt").write_bytes((elsewhere / how / "checkpoints" / "last.ckpt").read_bytes())
    assert accuracy(command("test", f"--ckpt_path={how}.ckpt")) > 0.05


@pytest.mark.slow
def test_what_cannot_be_packed_says_so(command):
    command("fit", *FIT, "--model.backbone.norm=my_normalizers.RootMeanSquare", "--run_dir=unpackable")
    refused = command("export", "unpackable", "--output=no.safetensors", code=2)
    assert "RootMeanSquare, whose result depends on the image" in refused


@pytest.mark.slow
def test_a_network_and_a_data_module(command, elsewhere):
    arguments = ("--model.backbone=my_networks.TinyNet", "--data=my_data.Checkerboards", "--data.batch_size=20")
    arguments += ("--model.backbone.num_classes=2",)
    command("fit", *FIT, *arguments, "--run_dir=boards")
    assert 0.4 < accuracy(command("test", "--ckpt_path=boards/checkpoints/last.ckpt")) <= 1


@pytest.mark.slow
def test_an_engine_and_an_export_format(command, elsewhere):
    estimator = "--model.backbone.estimator=my_estimators.Triangle"
    command("fit", *FIT, estimator, "--run_dir=plain")
    command("export", "plain", "--format=my_formats.Constants", "--output=constants.pt")
    assert "stem.bias" in torch.load(elsewhere / "constants.pt", weights_only=True)
    command("export", "plain", "--output=network.safetensors", "--engine=my_engines.Unpacked")
    found = [
        accuracy(command("test", "network.safetensors", "--config=plain/config.yaml", f"--engine={engine}"))
        for engine in ("my_engines.Unpacked", "torch")
    ]
    assert found[0] == pytest.approx(found[1], abs=0.01)


@pytest.mark.slow
def test_a_score_and_a_control(command, elsewhere):
    arguments = ("--lottery.score=my_scores.CentreFirst", "--lottery.densities=[0.3]", "--run_dir=lottery")
    options = ("--trainer.max_epochs=1", "--model.backbone.width=4", "--controls=my_controls.Negated")
    command("lottery", "run", "digits_lottery", *arguments, *options)
    level = elsewhere / "lottery" / "seed_0" / "level_01"
    ticket = torch.load(level / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    masks = [value for name, value in ticket.items() if name.endswith("convolution.mask")]
    assert all(mask[:, :, 1, 1].all() for mask in masks)
    assert 0.29 < sum(mask.sum() for mask in masks) / sum(mask.numel() for mask in masks) < 0.31
    assert (elsewhere / "lottery" / "seed_0" / "controls" / "my_controls.Negated" / "level_01").is_dir()
    assert accuracy(command("test", f"--ckpt_path={level}/checkpoints/last.ckpt")) > 0.05


@pytest.mark.slow
def test_names_that_are_not_known_answer_with_the_nearest(command):
    refused = command("fit", *FIT, "--model.backbone.norm=my_normalizers.RootMeanSqare", code=2)
    assert "norm='my_normalizers.RootMeanSqare' is not there" in refused
    assert "did you mean 'RootMeanSquare'?" in refused


@pytest.mark.slow
def test_an_installed_package_adds_names(tmp_path):
    """A distribution of nothing but its metadata and a module, as pip leaves it, in a process of its own."""
    metadata = tmp_path / "triangles-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: triangles\nVersion: 1.0\n")
    points = "sign_estimator.triangle = triangles:Triangle\nhead.broken = triangles:Missing\n"
    (metadata / "entry_points.txt").write_text(f"[bnfree.plugins]\n{points}")
    (tmp_path / "triangles.py").write_text(blocks()["my_estimators.py"])
    code = """
import torch
from bnfree.backbones import ReActNet18
from bnfree.errors import InputError
from bnfree.plugins import name_of, names
network = ReActNet18(width=2, estimator="triangle")
assert network.body[0][0].rsign.derivative.slope(torch.tensor(0.25)) == 0.75
from triangles import Triangle
assert name_of("sign_estimator", Triangle) == "triangle"
assert names("sign_estimator")[-1] == "triangle"
for option in ({"head": "broken"}, {"estimator": "triangel"}):
    try:
        ReActNet18(width=2, **option)
    except InputError as error:
        print(error)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("head='broken' of an installed package cannot be imported")
    assert second == "estimator='triangel' is not known; did you mean 'triangle'?"
