"""The name of a run says what the command changes."""

import re

import pytest

from bnfree.lightning_modules.training.run_names import run_label


@pytest.mark.parametrize(
    ("words", "label"),
    [
        (["--config=toy.yaml"], ""),
        (["--config=toy.yaml", "--config=configs/batch_norm.yaml"], "batch_norm"),
        (["--config", "toy.yaml", "--config", "batch_norm", "--model.backbone.width", "8"], "batch_norm-width=8"),
        (["--config=toy.yaml", "--trainer.callbacks+=bnfree.callbacks.WeightDynamics"], "WeightDynamics"),
        (["--config=toy.yaml", "--model.init_from=runs/a/checkpoints/last.ckpt"], "init_from=last"),
        # Where it lies and on what it runs tell nothing.
        (["--config=toy.yaml", "--data.data_dir=/data", "--trainer.devices=2", "--data.init_args.data_dir=/d"], ""),
        (["--config=toy.yaml", *(f"--model.a{i}={i}" for i in range(6))], "a0=0-a1=1-a2=2-a3=3-and_2_more"),
        (["--config=toy.yaml", "--model.loss=a b/../c"], "loss=c"),
    ],
)
def test_label(words, label):
    assert run_label(["fit", *words]) == label


def names(project):
    return [path.name for path in sorted((project / "runs" / "toy").iterdir())]


def test_a_changed_option_is_in_the_name_of_the_run(project, bnfree):
    assert bnfree("fit", "--config=toy.yaml", "--model.optimizer.lr=0.01")[0] == 0
    (name,) = names(project)
    assert re.fullmatch(r"\d{8}-\d{6}-lr=0\.01", name)


def test_a_name_of_ones_own_stands_in_its_place(project, bnfree):
    assert bnfree("fit", "--config=toy.yaml", "--model.optimizer.lr=0.01", "--name=first try/../x")[0] == 0
    (name,) = names(project)
    assert re.fullmatch(r"\d{8}-\d{6}-first_try_\.\._x", name)
