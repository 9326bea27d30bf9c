import csv
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, Dataset

from bnfree.callbacks import Throughput, throughput


class Slow(Dataset):
    """Images that take a second to read, by a clock that the test turns."""

    def __init__(self, clock, images, seconds=1.0):
        self.clock, self.images, self.seconds = clock, images, seconds

    def __len__(self):
        return self.images

    def __getitem__(self, index):
        self.clock.now += self.seconds
        return torch.ones(3, 8, 8), index % 10


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


class Work(Callback):
    """Takes time in places of a run."""

    def __init__(self, clock, step=0.0, validation=0.0):
        self.clock, self.step, self.validation = clock, step, validation

    def on_before_optimizer_step(self, *_):
        self.clock.now += self.step

    def on_validation_end(self, *_):
        self.clock.now += self.validation


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    return clock


def rows(trainer):
    with (Path(trainer.logger.log_dir) / "metrics.csv").open(newline="") as file:
        return [
            (float(row["throughput/images_per_second"]), float(row["throughput/data_wait"]))
            for row in csv.DictReader(file)
            if row["throughput/data_wait"]
        ]


def test_rate_and_waiting_are_those_of_the_clock(clock, classifier, head, make_trainer, tmp_path):
    throughput = Throughput()
    # A batch of four is read in 4 s and trained on in 12 s.
    trainer = make_trainer(
        throughput, Work(clock, step=12), logger=CSVLogger(tmp_path), log_every_n_steps=2, max_epochs=2
    )
    trainer.fit(classifier(head()), DataLoader(Slow(clock, 16), 4))
    assert rows(trainer) == [(0.25, 0.25)] * 4
    assert throughput.epoch_summary() == (0.25, 0.25)
    assert throughput.bar_items == {"img/s": 0, "wait": 0.25}


def test_validation_and_checkpoints_do_not_count(clock, classifier, head, make_trainer, tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 1:
                trainer.save_checkpoint(tmp_path / "checkpoint.ckpt")
                clock.now += 1000

    throughput = Throughput()
    trainer = make_trainer(
        throughput, Work(clock, step=4, validation=1000), Save(), logger=CSVLogger(tmp_path), val_check_interval=2
    )
    trainer.fit(classifier(head()), DataLoader(Slow(clock, 16), 4), DataLoader(Slow(clock, 4, 0.0), 4))
    # The batch after it is counted without the time for which it was waited.
    assert rows(trainer) == [(0.5, 0.5), (0.5, 0.5), (1.0, 0.0), (0.5, 0.5)]
    assert throughput.epoch_summary() == pytest.approx((16 / 28, 12 / 28))


def test_accumulated_batches_are_all_counted(clock, classifier, head, make_trainer, tmp_path):
    trainer = make_trainer(
        Throughput(), Work(clock, step=8), logger=CSVLogger(tmp_path), accumulate_grad_batches=2, log_every_n_steps=1
    )
    trainer.fit(classifier(head()), DataLoader(Slow(clock, 16), 4))
    assert rows(trainer) == [(0.5, 0.5)] * 2


def test_the_images_of_all_processes_count(clock, classifier, head, make_trainer, monkeypatch):
    trainer = make_trainer(Throughput(), Work(clock, step=4))
    monkeypatch.setattr(type(trainer), "world_size", 3)
    trainer.fit(classifier(head()), DataLoader(Slow(clock, 8), 4))
    assert trainer.callback_metrics["throughput/images_per_second"] == 1.5


def test_batches_of_something_else_are_not_counted(clock, classifier, make_trainer):
    class Module(classifier):
        def training_step(self, batch, batch_idx):
            clock.now += 1
            return self.backbone(batch["images"]).sum()

    module = Module(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 1)))
    throughput = Throughput()
    trainer = make_trainer(throughput)
    trainer.fit(module, DataLoader([{"images": torch.ones(3, 8, 8)}] * 8, 4))
    assert throughput.epoch_summary() is None
    assert "throughput/images_per_second" not in trainer.callback_metrics
