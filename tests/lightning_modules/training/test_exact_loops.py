"""Runs that are stopped right after a checkpoint and go on from it, against a run that nothing has stopped."""

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

from bnfree.lightning_modules.training.exact_loops import make_resumable

BATCHES = 6


class KilledError(Exception):
    """Stands for a signal that nothing can catch."""


class Placed(DataLoader):
    """Goes on after the batches that have been handed out."""

    def __init__(self):
        images = torch.randn(BATCHES, 4, 3, generator=torch.Generator().manual_seed(0))
        super().__init__(list(images), batch_size=None)
        self.first = self.given = 0

    def __iter__(self):
        self.given, self.first = self.first, 0
        for image in list(self.dataset)[self.given :]:
            self.given += 1
            yield image

    def state_dict(self):
        return {"given": self.given % BATCHES}

    def load_state_dict(self, state):
        self.first = state["given"]


class Images(LightningDataModule):
    def train_dataloader(self):
        return Placed()

    def val_dataloader(self):
        return DataLoader(list(torch.ones(2, 4, 3)), batch_size=None)


class Regression(LightningModule):
    """Logs in every way there is; draws from the global random numbers in training."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        torch.nn.init.constant_(self.layer.weight, 0.5)
        torch.nn.init.zeros_(self.layer.bias)
        self.mean = MeanMetric()
        self.seen = []

    def training_step(self, batch, batch_idx):
        loss = (self.layer(torch.nn.functional.dropout(batch, 0.3)) - 1).square().mean()
        self.mean.update(loss.detach(), weight=batch_idx + 1)
        self.log("of_step", loss, on_step=True, on_epoch=False)
        for name, reduction in (("mean", "mean"), ("sum", "sum"), ("max", "max"), ("min", "min")):
            self.log(f"train/{name}", loss, on_step=False, on_epoch=True, reduce_fx=reduction, batch_size=batch_idx + 1)
        self.log("train/both", loss, on_step=True, on_epoch=True)
        self.log("train/metric", self.mean, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", (self.layer(batch) - 1).square().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)


class Record(Callback):
    """Notes what an epoch has logged and where it has validated; kills the run once a file has been written."""

    def __init__(self, directory, kill_after=None):
        self.directory, self.kill_after, self.epochs, self.validations = directory, kill_after, [], []

    def _kill(self):
        if self.kill_after and (self.directory / f"{self.kill_after}.ckpt").exists():
            raise KilledError

    def on_train_batch_start(self, trainer, *_):
        self._kill()

    def on_validation_start(self, trainer, *_):
        if not trainer.sanity_checking:
            self.validations.append(trainer.global_step)
            self._kill()

    def on_train_epoch_start(self, trainer, *_):
        self._kill()

    def on_train_end(self, trainer, *_):
        self.metrics = dict(trainer.logged_metrics)
        self._kill()


class Rows(Callback):
    """Notes the metrics at the end of an epoch."""

    def __init__(self):
        self.rows = []

    def on_train_epoch_end(self, trainer, *_):
        self.rows.append((trainer.current_epoch, {k: v.clone() for k, v in trainer.callback_metrics.items()}))


def train(directory, resume=None, kill_after=None, saver=None, **options):
    """Runs; returns the rows of the epochs, the steps of validations and the weights."""
    torch.manual_seed(1)
    record, rows = Record(directory, kill_after), Rows()
    options = {"max_epochs": 3, "num_sanity_val_steps": 0, **options}
    trainer = Trainer(
        accelerator="cpu", default_root_dir=directory, logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[record, rows, saver or every_step(directory)], **options,
    )  # fmt: skip
    make_resumable(trainer)
    module = Regression()
    try:
        trainer.fit(module, datamodule=Images(), ckpt_path=resume)
    except KilledError:
        return None
    return rows.rows, record.validations, module.state_dict()


def every_step(directory, **options):
    return ModelCheckpoint(
        directory, filename="{step}", auto_insert_metric_name=False, every_n_train_steps=1, save_top_k=-1, **options
    )


def assert_goes_on(whole, rest):
    rows, validations, weights = rest
    assert rows
    for (epoch, one), (same_epoch, other) in zip(whole[0][-len(rows) :], rows, strict=True):
        assert epoch == same_epoch
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name], other[name]), (epoch, name)
    assert validations == whole[1][len(whole[1]) - len(validations) :]
    for name in weights:
        assert torch.equal(weights[name], whole[2][name]), name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("accumulate", "step"), [*((1, step) for step in range(1, 7)), *((4, step) for step in range(1, 6))]
)
def test_a_checkpoint_of_any_step_is_gone_on_from_exactly(tmp_path, step, accumulate):
    options = {"accumulate_grad_batches": accumulate}
    whole = train(tmp_path / "whole", **options)
    part = tmp_path / "part"
    assert train(part, kill_after=step, **options) is None
    rest = train(part, resume=part / f"{step}.ckpt", **options)
    assert_goes_on(whole, rest)
    assert {path.name for path in part.glob("*.ckpt")} == {path.name for path in (tmp_path / "whole").glob("*.ckpt")}


class SaveAtEnd(Callback):
    """A user's own checkpoint, which does not wait: in the midst of what happens at a batch's end."""

    def __init__(self, directory):
        self.directory = directory

    def on_train_batch_end(self, trainer, *_):
        trainer.save_checkpoint(self.directory / f"{trainer.global_step}.ckpt")


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_of_an_epochs_last_batch_has_its_validation_before_it(tmp_path):
    whole = train(tmp_path / "whole")
    part = tmp_path / "part"
    assert train(part, kill_after=6, saver=SaveAtEnd(part)) is None
    rest = train(part, resume=part / "6.ckpt", saver=SaveAtEnd(part))
    assert rest[1] == [6, 12, 18]
    assert_goes_on(whole, rest)


@pytest.mark.filterwarnings("ignore")
def test_where_steps_limit_a_run_an_epoch_ends_once(tmp_path):
    options = {"max_epochs": -1, "max_steps": 15}
    whole = train(tmp_path / "whole", **options)
    part = tmp_path / "part"
    assert train(part, kill_after=6, **options) is None
    rest = train(part, resume=part / "6.ckpt", **options)
    assert [epoch for epoch, _ in rest[0]] == [1, 2]
    assert_goes_on(whole, rest)


@pytest.mark.filterwarnings("ignore")
def test_a_worse_network_never_overwrites_the_best(tmp_path):
    def saver(directory):
        return every_step(directory, monitor="val/loss", mode="min")

    whole = saver(tmp_path / "whole")
    train(tmp_path / "whole", saver=whole)
    part = tmp_path / "part"
    assert train(part, kill_after=6, saver=saver(part)) is None
    rest = saver(part)
    train(part, resume=part / "6.ckpt", saver=rest)
    assert float(rest.best_model_score) == float(whole.best_model_score)
    assert rest.best_model_path.rpartition("/")[2] == whole.best_model_path.rpartition("/")[2]


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_goes_on_after_an_epoch_has_the_counts_of_its_validation(tmp_path):
    def counts(directory):
        file = torch.load(directory / "7.ckpt", weights_only=True)
        return file["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]

    part, options = tmp_path / "part", {"num_sanity_val_steps": 2}
    train(tmp_path / "whole", **options)
    assert train(part, kill_after=6, **options) is None
    train(part, resume=part / "6.ckpt", **options)
    assert counts(part) == counts(tmp_path / "whole")
    assert counts(part)["current"]["completed"] == 2
