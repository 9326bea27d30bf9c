import csv
import logging
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger

from bnfree.callbacks import KeepFreedMemory
from bnfree.callbacks import keep_freed_memory as module


@pytest.fixture
def setting(monkeypatch):
    """Stands in for the setting, which would last beyond the test, and for the counter."""
    calls = []
    counter = iter(range(1000, 10**6, 700))

    def choose(in_force):
        monkeypatch.setattr(module, "keep_freed_memory", lambda: calls.append(1) or in_force)
        monkeypatch.setattr(module, "page_faults", lambda: next(counter))
        return calls

    return choose


def test_faults_per_step_are_logged(setting, classifier, head, make_trainer, make_loader, tmp_path):
    calls = setting(True)
    trainer = make_trainer(KeepFreedMemory(), logger=CSVLogger(tmp_path), log_every_n_steps=2)
    trainer.fit(classifier(head()), make_loader(images=24))
    assert len(calls) == 1
    # The counter grows by 700 whenever it is read: at the start, after two steps, four and six.
    assert trainer.callback_metrics["memory/page_faults"].item() == 350
    with (Path(trainer.logger.log_dir) / "metrics.csv").open() as file:
        assert [float(row["memory/page_faults"]) for row in csv.DictReader(file)] == [350] * 3


def test_accumulated_batches_are_one_step(setting, classifier, head, make_trainer, make_loader):
    setting(True)
    trainer = make_trainer(KeepFreedMemory(), accumulate_grad_batches=3)
    trainer.fit(classifier(head()), make_loader(images=24))
    assert trainer.global_step == 2
    assert trainer.callback_metrics["memory/page_faults"].item() == 700


def test_nothing_is_logged_unless_wanted(setting, classifier, head, make_trainer, make_loader):
    calls = setting(True)
    trainer = make_trainer(KeepFreedMemory(log_page_faults=False))
    trainer.fit(classifier(head()), make_loader())
    assert "memory/page_faults" not in trainer.callback_metrics
    assert len(calls) == 1


def test_another_c_library_is_named_in_one_line(setting, classifier, head, make_trainer, make_loader, caplog):
    setting(False)
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        make_trainer(KeepFreedMemory()).fit(classifier(head()), make_loader())
    assert [r.getMessage() for r in caplog.records if "KeepFreedMemory" in r.getMessage()] == [
        "KeepFreedMemory changes nothing here: the C library is not glibc."
    ]


def test_evaluating_changes_no_setting(setting, classifier, head, make_trainer, make_loader):
    calls = setting(True)
    make_trainer(KeepFreedMemory()).validate(classifier(head()), make_loader(), verbose=False)
    assert calls == []
