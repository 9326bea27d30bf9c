import csv

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, TensorDataset

from bnfree.callbacks import PredictionWriter
from bnfree.callbacks.prediction_writer import table
from bnfree.errors import InputError

LOGITS = torch.randn(7, 3, generator=torch.Generator().manual_seed(5))


class Predictor(LightningModule):
    def predict_step(self, batch, batch_idx):
        logits, index = batch
        probability, label = logits.softmax(1).max(1)
        return {"index": index, "class": label, "probability": probability}


class Unordered(LightningDataModule):
    """Seven images in an order of their own; image 4 comes twice."""

    order = torch.tensor([6, 0, 4, 1, 5, 4, 3, 2])

    def predict_dataloader(self):
        return DataLoader(TensorDataset(LOGITS[self.order], self.order), batch_size=3)


class Named(Unordered):
    predict_image_names = [f'photo, "{i}".jpg' for i in range(7)]
    class_names = ["aeroplane", "bird", "cat"]


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def expected(datamodule):
    probability, label = LOGITS.double().softmax(1).max(1)
    rows = [["image", "class", "probability"]]
    for i in range(7):
        named = isinstance(datamodule, Named)
        image = datamodule.predict_image_names[i] if named else str(i)
        name = datamodule.class_names[label[i]] if named else str(label[i].item())
        rows.append([image, name, f"{probability[i].item():.6f}"])
    return rows


@pytest.mark.parametrize("datamodule", [Named, Unordered])
@pytest.mark.parametrize("return_predictions", [True, False])
def test_writes_each_image_once_in_order(make_trainer, tmp_path, capsys, datamodule, return_predictions):
    data = datamodule()
    make_trainer(PredictionWriter()).predict(Predictor(), datamodule=data, return_predictions=return_predictions)
    path = tmp_path / "predictions.csv"
    assert path.read_text().splitlines()[0] == "image,class,probability"
    assert read(path) == expected(data)
    assert list(tmp_path.iterdir()) == [path]
    assert f"Predictions written to {path}" in capsys.readouterr().out


def test_replaces_an_older_file_whole_and_keeps_it_on_failure(make_trainer, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old\n" * 100)
    data = Named()
    data.predict_image_names = ["too", "few"]
    with pytest.raises(IndexError):
        make_trainer(PredictionWriter("table.csv")).predict(Predictor(), datamodule=data)
    assert path.read_text() == "old\n" * 100
    make_trainer(PredictionWriter("table.csv")).predict(Predictor(), datamodule=Named())
    assert read(path) == expected(Named())


def test_half_precision_and_no_datamodule(make_trainer, tmp_path):
    class Half(Predictor):
        def predict_step(self, batch, batch_idx):
            output = super().predict_step(batch, batch_idx)
            return {**output, "probability": output["probability"].bfloat16()}

    make_trainer(PredictionWriter()).predict(Half(), Unordered().predict_dataloader())
    rows = read(tmp_path / "predictions.csv")
    assert [row[:2] for row in rows] == [row[:2] for row in expected(Unordered())]
    for row, reference in zip(rows[1:], expected(Unordered())[1:], strict=True):
        assert float(row[2]) == pytest.approx(float(reference[2]), abs=5e-3)


def test_another_predict_step_is_answered_in_one_sentence(make_trainer, tmp_path):
    class Other(Predictor):
        def predict_step(self, batch, batch_idx):
            return batch[0]

    with pytest.raises(InputError, match=r"predict_step returned Tensor.*index, class and probability"):
        make_trainer(PredictionWriter()).predict(Other(), datamodule=Named())
    assert list(tmp_path.iterdir()) == []


def test_file_name_is_checked_at_once():
    with pytest.raises(InputError, match="filename=''"):
        PredictionWriter("")


@pytest.mark.slow
def test_two_processes_write_one_file(make_trainer, tmp_path):
    trainer = make_trainer(PredictionWriter(), devices=2, strategy="ddp_fork")
    trainer.predict(Predictor(), datamodule=Named(), return_predictions=False)
    assert read(tmp_path / "predictions.csv") == expected(Named())
    assert list(tmp_path.iterdir()) == [tmp_path / "predictions.csv"]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t"])
def test_names_that_spreadsheets_would_compute_get_an_apostrophe(start):
    outputs = [{"index": torch.arange(3), "class": torch.tensor([0, 1, 1]), "probability": torch.full((3,), 0.25)}]
    images = [f"{start}HYPERLINK(1)/a.png", "test/=b.png", "test/c.png"]
    rows = table(outputs, images, [f"{start}cmd|' /C calc'!A0", "plain"])
    assert [row[1] for row in rows] == [f"'{images[0]}", *images[1:]]
    assert [row[2] for row in rows] == [f"'{start}cmd|' /C calc'!A0", "plain", "plain"]
