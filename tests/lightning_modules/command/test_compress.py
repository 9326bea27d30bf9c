"""`bnfree compress`: from a checkpoint to a smaller one that everything else reads."""

import csv
import re
from pathlib import Path

import lightning.pytorch
import pytest
import torch
from small_digits import train_digits

from bnfree.backbones import NFResNet18, ReActNet18
from bnfree.lightning_modules.cli import main
from bnfree.lightning_modules.modules.teacher import Teacher

SIZES = {"num_classes": 10, "in_channels": 1, "width": 4}
HALF = ["merge", "--beta=0.99", "--max_ratio=0.5"]


def write_checkpoint(path, network, data=True, **arguments):
    """What a training leaves, shortened."""
    kind = type(network)
    backbone = {"class_path": f"bnfree.backbones.{kind.__name__}", "init_args": {**SIZES, **arguments}}
    content = {
        "pytorch-lightning_version": lightning.pytorch.__version__,
        "epoch": 3,
        "global_step": 30,
        "state_dict": {f"backbone.{name}": tensor for name, tensor in network.state_dict().items()},
        "optimizer_states": [{"state": {}}],
        "loops": {},
        "hparams_name": "kwargs",
        "hyper_parameters": {"_class_path": "bnfree.lightning_modules.ImageClassifier", "backbone": backbone},
        "DigitsDataModule": {"class_names": ["a"] * 10},
    }
    if data:
        content["datamodule_hyper_parameters"] = {"_class_path": "bnfree.datamodules.DigitsDataModule"}
    torch.save(content, path)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    place = tmp_path_factory.mktemp("source") / "large.ckpt"
    torch.manual_seed(0)
    network = NFResNet18(**SIZES)
    for block in network.body:
        torch.nn.init.ones_(block.skip_gain)
    write_checkpoint(place, network)
    return place


def test_the_smaller_network_is_printed_and_read_from_its_file(source, tmp_path, capsys):
    output = tmp_path / "small.ckpt"
    assert main(["compress", str(source), *HALF, f"--output={output}"]) == 0
    printed = capsys.readouterr().out
    # Two kernels of 3x3 from 4 to 4 channels, at 16x16 pixels.
    before = f"{2 * 9 * 4 * 4 * 16 * 16 / 1000:.1f}k"
    assert re.search(rf"body.0 +4 -> 2 \(50.0%\) .* {before} -> 36.9k \(50.0%\)", printed)
    assert re.search(r"network +120 -> 60 \(50.0%\)", printed)
    assert "--model.backbone.inner_channels=[2,2,4,4,8,8,16,16]" in printed
    content = torch.load(output, weights_only=True)
    assert "optimizer_states" not in content
    assert content["class_names"] == ["a"] * 10

    assert main(["summary", str(output)]) == 0
    assert re.search(r"body.1.convolution2 +W32A32 +2x16x16 -> 4x16x16", capsys.readouterr().out)
    teacher = Teacher(weights=str(output))
    teacher.load(10, (1, 8, 8))
    network = NFResNet18(**SIZES, inner_channels=[2, 2, 4, 4, 8, 8, 16, 16])
    network.load_state_dict({key.removeprefix("backbone."): v for key, v in content["state_dict"].items()})
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(teacher(images), network.eval()(images))


def check_refusals(words_and_sentences, capsys):
    for words, said in words_and_sentences:
        assert main(["compress", *map(str, words)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line


def test_options_that_do_not_do_are_refused_in_a_sentence(source, tmp_path, capsys):
    output, run = tmp_path / "out.ckpt", tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("{}")
    refusals = (
        ([source, "merge", f"--output={run / 'checkpoints' / 'small.ckpt'}"], "lies in the run directory"),
        ([source, "merge", f"--output={source}", "--overwrite"], "is the file that is read"),
        ([source, "merg", f"--output={output}"], "method='merg' is not known; did you mean 'merge'?"),
        ([source, "merge", f"--output={output}", "--beta=2"], "beta=2.0 must be at least 0 and less than 1."),
        ([source, "merge", f"--output={output}", "--bits=2"], "bits=2 is no option of 'merge', which takes --beta"),
        ([source, "datafree", f"--output={output}", "--ratio=1"], "ratio=1.0 must be at least 0 and less than 1."),
        ([source, "merge", f"--output={output}", "--betta=2"], "option '--betta=2' is not expected here"),
    )
    check_refusals(refusals, capsys)
    assert not output.exists()


@pytest.mark.slow
def test_networks_that_do_not_do_are_refused_in_a_sentence_and_others_need_no_data(source, tmp_path, capsys):
    output = tmp_path / "out.ckpt"
    binary, silent = tmp_path / "binary.ckpt", tmp_path / "silent.ckpt"
    write_checkpoint(binary, ReActNet18(**SIZES))
    write_checkpoint(silent, NFResNet18(**SIZES), data=False)
    refusals = (
        (["quickstart", "merge", f"--output={output}"], "source='quickstart' is a config"),
        ([binary, "merge", f"--output={output}"], "shortcut around every convolution"),
        ([source, "builtins.repr", f"--output={output}"], "method gives for 'body.0' no InnerChannels"),
        ([silent, "merge", f"--output={output}"], "add --image_shape=C,H,W"),
    )
    check_refusals(refusals, capsys)
    assert not output.exists()
    words = ["--ratio=0.25", "--bits=3", f"--output={output}", "--image_shape=1,8,8"]
    assert main(["compress", str(silent), "datafree", *words]) == 0
    assert re.search(r"body.0 +4 -> 3 \(75.0%\) .* 18.4k -> 13.8k", capsys.readouterr().out)
    weights = torch.load(output, weights_only=True)["state_dict"]
    assert all(len(row.unique()) <= 7 for row in weights["backbone.body.7.convolution2.weight"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_trained_network_is_compressed_tested_and_trained_on_and_teaches(tmp_path, capsys, monkeypatch):
    """Through the doors that a user has."""
    run, small = tmp_path / "run", tmp_path / "small.ckpt"
    train_digits(run, "--model.backbone=NFResNet18")
    assert main(["compress", str(run), *HALF, f"--output={small}"]) == 0
    words = re.search(r"To train it on: bnfree (.*)", capsys.readouterr().out)[1].replace("'", "").split()
    assert main(["test", f"--ckpt_path={small}", "--trainer.limit_test_batches=1"]) == 0
    assert "test/acc" in capsys.readouterr().out
    words = [word.replace("CONFIG", str(run / "config.yaml")) for word in words]
    assert main([*words, f"--run_dir={tmp_path / 'tuned'}"]) == 0
    tuned = torch.load(tmp_path / "tuned" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert tuned["backbone.body.7.convolution2.weight"].shape == (32, 16, 3, 3)
    student = ["--config=distilled", f"--model.teacher.weights={small}"]
    train_digits(tmp_path / "student", *student)
    with (tmp_path / "student" / "metrics.csv").open() as file:
        assert any(row.get("train/loss") for row in csv.DictReader(file))
    assert main(["fit", f"--ckpt_path={small}", f"--run_dir={tmp_path / 'no'}"]) == 2
    assert "holds weights but no optimizer state to resume from" in capsys.readouterr().err
    # And as the document has it, in Python.
    monkeypatch.chdir(tmp_path)
    document = (Path(__file__).parents[3] / "docs" / "compression.md").read_text()
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", document, re.DOTALL) if "DataFree(" in code]
    exec(compile(code, "<compression.md>", "exec"), {})
    assert "[3, 3, 6, 6, 12, 12, 24, 24]" in capsys.readouterr().out
