"""`bnfree analyse` and `bnfree score-data`, from a checkpoint to figures and to a training on a subset."""

import json

import pytest

from bnfree.datamodules import DigitsDataModule
from bnfree.datamodules.score_subsets import read_scores
from bnfree.lightning_modules.cli import main

SMALL = ["--model.backbone.width=2", "--data.limit_train=40"]


@pytest.mark.parametrize(
    ("analysis", "columns"),
    [
        pytest.param("sensitivity", {"scale_free", "eigenvalue", "trace"}, marks=pytest.mark.slow),
        pytest.param("trainability", {"condition", "patterns"}, marks=pytest.mark.slow),
        ("complexity", {"features"}),
    ],
)
def test_analyses_give_their_figures(capsys, analysis, columns):
    assert main(["analyse", "quickstart", analysis, "--num_images=4", "--json", *SMALL]) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(set(figures) == columns for figures in found.values())
    if analysis == "sensitivity":
        sizes = [figures["scale_free"] for figures in found.values()]
        assert sizes == sorted(sizes, reverse=True)
        assert "body.0.0.convolution" in found
    if analysis == "trainability":
        assert found["network"]["patterns"] == 4


def test_what_cannot_be_done_is_said_before_anything_is_done(tmp_path, capsys):
    assert main(["analyse", "quickstart", "trainability", "--num_images=0", *SMALL]) == 2
    assert "num_images=0 must be at least 1." in capsys.readouterr().err
    assert main(["score-data", "nothing", f"--output={tmp_path}", "--overwrite"]) == 2
    assert f"output={str(tmp_path)!r} is a directory; give the name of a file." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_scores_of_two_networks_are_averaged(tmp_path, capsys):
    output = tmp_path / "scores.csv"
    words = [f"--output={output}", *SMALL]
    assert main(["score-data", "quickstart", "quickstart", *words]) == 0
    scores = read_scores(output)
    data = DigitsDataModule(limit_train=40)
    assert sorted(scores) == sorted(data.training_places().tolist())
    assert main(["score-data", "quickstart", *words]) == 2
    assert "is there already; give another name, or --overwrite" in capsys.readouterr().err
    # An untrained network is as wrong about every image as about any other, nearly.
    assert 0.5 < min(scores.values()) <= max(scores.values()) < 2**0.5
