"""The short help, the long one, and that on classes."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("subcommand", ["fit", "validate", "test", "predict"])
def test_help_is_short_and_says_where_the_rest_is(bnfree, subcommand):
    code, out, err = bnfree(subcommand, "--help")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) < 40
    assert max(map(len, out.splitlines())) <= 118
    assert out.startswith(f"usage: bnfree {subcommand} ")
    assert f"bnfree {subcommand} --help-all" in out
    assert f"bnfree {subcommand} --help CLASS" in out


def test_help_is_there_without_torch():
    code = (
        "import sys; from bnfree.lightning_modules.cli import main; main(['fit', '-h']); main(['test', '-h']); "
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_every_option_is_in_the_long_help(bnfree):
    code, out, _ = bnfree("fit", "--help-all")
    assert code == 0
    for option in ("--trainer.accumulate_grad_batches", "--best_checkpoint.monitor", "--lr_monitor.logging_interval"):
        assert option in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--help", "ReActNet18"], ["bnfree.backbones", "--num_classes", "--width"]),
        (["--help", "torch.optim.SGD"], ["torch.optim", "--momentum"]),
        (["--config", "quickstart", "--model.help"], ["ImageClassifier", "--backbone", "--calibration"]),
        (["--config", "quickstart", "--model.backbone.help"], ["ReActNet18", "--width"]),
        (["--config", "quickstart", "--model.optimizer.help"], ["Adam", "--lr"]),
        (["--config", "quickstart", "--data.help"], ["DigitsDataModule", "--batch_size", "--split_seed"]),
        (["--trainer.callbacks.help=AdaptiveGradientClipping"], ["AdaptiveGradientClipping", "--clip_factor"]),
        (["--model.lr_scheduler.help", "CosineAnnealingLR"], ["CosineAnnealingLR", "--T_max"]),
    ],
)
def test_a_class_tells_its_arguments(bnfree, words, said):
    code, out, err = bnfree("fit", *words)
    assert (code, err) == (0, "")
    assert not [word for word in said if word not in out]
    assert "__main__" not in out
    assert not any(line.startswith("<class ") for line in out.splitlines())
    assert "known subclasses" not in out


def test_own_classes_tell_theirs(bnfree):
    code, out, _ = bnfree("fit", "--config=toy.yaml", "--model.help")
    assert code == 0
    assert "--smoothing" in out


def test_mistakes_in_what_is_asked_for(complaint):
    assert "did you mean 'ReActNet18'?" in complaint("fit", "--help", "ReactNet18")
    assert "--model.help needs a class" in complaint("fit", "--model.help")
    assert "is no class" in complaint("fit", "--help", "torch.relu")
    assert "names no known class" in complaint("test", "--help", "Qwertyuiop")
