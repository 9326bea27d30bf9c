"""What a test counts of its classes, and what a report makes of it."""

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image

from bnfree.callbacks.confusion_matrix import CLASSES, CONFUSION, count_pairs, write_confusion
from bnfree.errors import InputError
from bnfree.lightning_modules.cli import main
from bnfree.lightning_modules.reports import confusion as drawn

DIGITS = [
    "fit", "--config=quickstart", "--run_dir=run", "--trainer.max_epochs=1", "--model.backbone.width=4",
    "--trainer.limit_train_batches=4", "--model.calibration_images=8", "--data.image_size=8",
]  # fmt: skip


def test_pairs_are_counted_as_by_hand():
    labels, predicted = torch.randint(4, (50,)), torch.randint(4, (50,))
    counts = count_pairs(labels, predicted, 4)
    pairs = list(zip(labels.tolist(), predicted.tolist(), strict=True))
    assert counts.tolist() == [[pairs.count((i, j)) for j in range(4)] for i in range(4)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_the_test_after_a_fit_leaves_the_matrix_that_the_report_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(DIGITS) == 0
    out = capsys.readouterr().out
    with (tmp_path / "run" / CLASSES).open() as file:
        classes = list(csv.DictReader(file))
    found = drawn.read_confusion(tmp_path / "run")
    assert drawn.FILE == CONFUSION
    assert [row["class"] for row in classes] == found.names == [str(digit) for digit in range(10)]
    right, total = sum(int(row["correct"]) for row in classes), sum(int(row["images"]) for row in classes)
    assert f"test/acc: {100 * right / total:.2f} %" in out
    assert [int(row["correct"]) for row in classes] == [found.counts[i][i] for i in range(10)]
    assert [float(row["accuracy"]) for row in classes] == pytest.approx(found.accuracies(), abs=1e-6)
    assert main(["report", "run"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2:] == [f"Figure: {Path('run/report') / name}" for name in ("report.png", "confusion.png")]
    text = (tmp_path / "run" / "report" / "report.md").read_text()
    assert "![Confusion matrix](confusion.png)" in text
    worst = min(classes, key=lambda row: float(row["accuracy"]))
    assert f"| {worst['class']} | {worst['images']} | {100 * float(worst['accuracy']):.2f} |" in text
    with Image.open(tmp_path / "run" / "report" / "confusion.png") as image:
        assert image.width > 600


def test_classes_without_images_and_names_like_formulas(tmp_path):
    write_confusion(tmp_path, torch.tensor([[2, 1], [0, 0]]), ["=cat", "dog"])
    found = drawn.read_confusion(tmp_path)
    assert found.names == ["'=cat", "dog"]
    assert found.accuracies() == [pytest.approx(2 / 3), None]
    assert drawn.class_rows(found)[1:] == [["'=cat", "3", "66.67", "dog (1)"], ["dog", "0", "—", "—"]]
    (tmp_path / CONFUSION).write_text("class,a\na,x\n")
    with pytest.raises(InputError, match="is damaged"):
        drawn.read_confusion(tmp_path)
