import csv

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn

from bnfree.backbones import ReActNet18
from bnfree.callbacks import SignalPropagation
from bnfree.diagnostics import measure_signals
from bnfree.errors import InputError

COLUMNS = [
    "epoch",
    "unit",
    "mean",
    "drift",
    "variance",
    "expected_variance",
    "imbalance",
    "worst_imbalance",
    "window",
]
UNITS = [f"body.{stage}.{unit}" for stage in range(4) for unit in range(4)]


def read(path):
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames == COLUMNS
    return rows


def epochs(rows):
    assert [row["unit"] for row in rows] == UNITS * (len(rows) // len(UNITS))
    return [int(row["epoch"]) for row in rows][:: len(UNITS)]


def agree(rows, signals):
    assert len(rows) == len(signals)
    for row, signal in zip(rows, signals, strict=True):
        assert row["unit"] == signal.name
        for column in COLUMNS[2:]:
            value = getattr(signal, column)
            assert row[column] == "" if value is None else float(row[column]) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("norm", ["bn_free", "batch_norm"])
def test_measures_the_first_validation_batch_after_each_epoch(classifier, make_trainer, make_loader, tmp_path, norm):
    class Expected(Callback):
        def __init__(self):
            self.signals = []

        def on_validation_start(self, trainer, pl_module):
            batch = next(iter(trainer.val_dataloaders))
            self.signals.append(measure_signals(pl_module.backbone, batch[0]))

    expected = Expected()
    trainer = make_trainer(SignalPropagation(), expected, max_epochs=2, num_sanity_val_steps=1)
    trainer.fit(classifier(ReActNet18(width=4, norm=norm)), make_loader(), make_loader(12, 6))
    rows = read(tmp_path / "signal_propagation.csv")
    assert epochs(rows) == [0, 1]
    # The first entry comes from the sanity check, which is not an epoch.
    agree(rows, expected.signals[1] + expected.signals[2])
    assert (rows[0]["expected_variance"] == "") == (norm == "batch_norm")
    assert list(tmp_path.glob("*.unfinished")) == []


def test_measures_the_first_training_batch_without_validation(classifier, make_trainer, make_loader, tmp_path):
    backbone = ReActNet18(width=4)
    before = measure_signals(backbone, next(iter(make_loader()))[0])
    make_trainer(SignalPropagation()).fit(classifier(backbone), make_loader())
    agree(read(tmp_path / "signal_propagation.csv"), before)


def test_max_images(classifier, make_trainer, make_loader, tmp_path):
    backbone = ReActNet18(width=4)
    before = measure_signals(backbone, next(iter(make_loader()))[0][:3])
    make_trainer(SignalPropagation(max_images=3)).fit(classifier(backbone), make_loader())
    agree(read(tmp_path / "signal_propagation.csv"), before)


def test_every_n_epochs_and_several_validations_in_an_epoch(
    classifier, make_trainer, make_loader, tmp_path, monkeypatch
):
    import bnfree.callbacks.signal_propagation as module

    steps = []
    trainer = None

    def measure(network, images):
        steps.append(trainer.global_step)
        return measure_signals(network, images)

    monkeypatch.setattr(module, "measure_signals", measure)
    trainer = make_trainer(SignalPropagation(every_n_epochs=2), max_epochs=5, val_check_interval=1)
    trainer.fit(classifier(), make_loader(), make_loader())
    assert epochs(read(tmp_path / "signal_propagation.csv")) == [0, 2, 4]
    # Two steps and two validations in each epoch; the first validation counts.
    assert steps == [1, 5, 9]


def test_resumed_run_replaces_the_epochs_that_it_runs_again(classifier, make_trainer, make_loader, tmp_path):
    def fit(max_epochs, ckpt_path=None):
        logger = CSVLogger(tmp_path, name="", version="run")
        save = ModelCheckpoint(tmp_path / "checkpoints", filename="{epoch}", save_top_k=-1)
        trainer = make_trainer(
            SignalPropagation(), save, logger=logger, max_epochs=max_epochs, enable_checkpointing=True
        )
        trainer.fit(classifier(), make_loader(), make_loader(), ckpt_path=ckpt_path, weights_only=True)
        return read(tmp_path / "run" / "signal_propagation.csv")

    first = fit(4)
    assert epochs(first) == [0, 1, 2, 3]
    again = fit(3, tmp_path / "checkpoints" / "epoch=1.ckpt")
    assert epochs(again) == [0, 1, 2]
    assert again[:32] == first[:32]
    # Same weights, same data: the epoch that was run again says the same.
    for row, old in zip(again[32:], first[32:48], strict=True):
        assert float(row["variance"]) == pytest.approx(float(old["variance"]), rel=1e-3)
    assert epochs(fit(5, tmp_path / "checkpoints" / "epoch=2.ckpt")) == [0, 1, 2, 3, 4]


def test_figure_goes_to_tensorboard_and_the_table_to_the_run_directory(classifier, make_trainer, make_loader, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="board", version=3)
    trainer = make_trainer(SignalPropagation(filename="signals.csv"), logger=logger, max_epochs=2)
    trainer.fit(classifier(), make_loader(), make_loader())
    directory = tmp_path / "board" / "version_3"
    assert epochs(read(directory / "signals.csv")) == [0, 1]
    events = EventAccumulator(str(directory)).Reload()
    images = events.Images("signal_propagation")
    assert [image.step for image in images] == [2, 4]
    assert images[0].width > 500
    assert images[0].height > 500


def test_observes_only(classifier, make_trainer, make_loader):
    results = []
    for callbacks in ([], [SignalPropagation()]):
        torch.manual_seed(3)
        module = classifier(ReActNet18(width=4, norm="batch_norm"))
        make_trainer(*callbacks).fit(module, make_loader(), make_loader())
        results.append((module.state_dict(), torch.rand(1)))
    (expected, expected_random), (state, random) = results
    assert torch.equal(random, expected_random)
    assert all(torch.equal(state[key], value) for key, value in expected.items())


def test_nothing_is_written_by_validate(classifier, make_trainer, make_loader, tmp_path):
    make_trainer(SignalPropagation()).validate(classifier(), make_loader())
    assert not (tmp_path / "signal_propagation.csv").exists()


def test_what_cannot_be_measured_is_said(classifier, make_trainer, make_loader):
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    with pytest.raises(InputError, match="has no ResidualUnit"):
        make_trainer(SignalPropagation()).fit(classifier(backbone), make_loader())


@pytest.mark.parametrize("arguments", [{"every_n_epochs": 0}, {"max_images": 0}])
def test_arguments_are_checked_at_once(arguments):
    with pytest.raises(InputError, match=f"{next(iter(arguments))}=0"):
        SignalPropagation(**arguments)
