"""Exact resumption, with a loader alone and through a real Trainer."""

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from bnfree.datamodules import ImageFolderDataModule


class Recorder(LightningModule):
    """Learns nothing and keeps a checksum of each batch it trains on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, int, float]] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.seen.append((self.current_epoch, batch_idx, float(batch[0].double().sum())))
        return self.weight.sum()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        assert batch[0].dtype == torch.float32

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class ScheduledRecorder(Recorder):
    """As modules do whose schedule needs the number of steps; Lightning makes the loader for it before it restores."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert self.trainer.estimated_stepping_batches == 18
        return super().configure_optimizers()


class StopAfter(Callback):
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.steps:
            trainer.save_checkpoint(f"{trainer.default_root_dir}/stopped.ckpt")
            trainer.should_stop = True


def fit(module, root, max_epochs=3, callbacks=(), ckpt_path=None, recorder_class=Recorder) -> Recorder:
    recorder = recorder_class()
    Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        default_root_dir=root,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, ModelCheckpoint(root, filename="{epoch}", save_top_k=-1)],
    ).fit(recorder, module, ckpt_path=ckpt_path)
    return recorder


@pytest.mark.parametrize("stop", [1, 5])
def test_a_loader_resumes_inside_an_epoch(tiny, stop):
    loader = tiny().train_dataloader()
    loader.sampler.set_epoch(2)
    expected = list(loader)
    iterator = iter(loader)
    for _ in range(stop):
        next(iterator)
    fresh = tiny().train_dataloader()
    fresh.load_state_dict(loader.state_dict())
    fresh.sampler.set_epoch(2)
    resumed = list(fresh)
    assert len(resumed) == 6 - stop
    for a, b in zip(expected[stop:], resumed, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a[:4], b[:4], strict=True))
    assert len(list(fresh)) == 6


def test_a_finished_epoch_is_followed_by_a_whole_one(tiny):
    loader = tiny().train_dataloader()
    list(loader)
    fresh = tiny().train_dataloader()
    fresh.load_state_dict(loader.state_dict())
    fresh.sampler.set_epoch(1)
    assert len(list(fresh)) == 6


def test_the_state_loads_as_weights_only(tiny, tmp_path):
    loader = tiny().train_dataloader()
    next(iter(loader))
    torch.save(loader.state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == {
        "epoch": 0,
        "images": loader.sampler.global_batch_size,
    }


@pytest.mark.filterwarnings("ignore")
def test_a_trainer_sees_a_new_order_in_each_epoch(tiny, tmp_path):
    seen = fit(tiny(), tmp_path).seen
    assert len(seen) == 18
    assert len({checksum for _, _, checksum in seen}) == 18


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recorder", [Recorder, ScheduledRecorder])
@pytest.mark.parametrize("steps", [2, 6, 8, 12])
def test_a_trainer_goes_on_with_the_batches_that_an_uninterrupted_run_sees(tiny, tmp_path, steps, recorder):
    expected = fit(tiny(), tmp_path / "whole", recorder_class=recorder).seen
    fit(tiny(), tmp_path / "part", callbacks=[StopAfter(steps)], recorder_class=recorder)
    stopped = tmp_path / "part" / "stopped.ckpt"
    resumed = fit(tiny(), tmp_path / "rest", ckpt_path=stopped, recorder_class=recorder).seen
    assert resumed == expected[steps:]


@pytest.mark.filterwarnings("ignore")
def test_a_trainer_goes_on_after_an_epoch(tiny, tmp_path):
    expected = fit(tiny(), tmp_path / "whole").seen
    for epoch in range(2):
        resumed = fit(tiny(), tmp_path / f"rest{epoch}", ckpt_path=tmp_path / "whole" / f"epoch={epoch}.ckpt").seen
        assert resumed == expected[6 * (epoch + 1) :]


class Checker(LightningModule):
    """Notes what evaluation and prediction are given."""

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("images", float(len(batch[1])), reduce_fx="sum")
        assert batch[0].dtype == self.expected_dtype

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return batch[1]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("precision", "dtype"), [("32-true", torch.float32), ("64-true", torch.float64), ("bf16-true", torch.bfloat16)]
)
def test_a_trainer_tests_and_predicts_each_image_once_in_its_precision(tiny, precision, dtype):
    trainer = Trainer(
        accelerator="cpu",
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    checker, module = Checker(), tiny()
    checker.expected_dtype = dtype
    assert trainer.test(checker, module, verbose=False) == [{"images": 25.0}]
    assert torch.cat(trainer.predict(checker, module)).tolist() == list(range(25))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("steps", [2, 3, 4])
def test_worker_processes_resume_exactly_too(image_folder, tmp_path, steps):
    folder = image_folder({"train": 8})

    def module():
        return ImageFolderDataModule(str(folder), 6, val_split=3, image_size=16, num_workers=2)

    expected = fit(module(), tmp_path / "whole").seen
    assert len(expected) == 9
    fit(module(), tmp_path / "part", callbacks=[StopAfter(steps)])
    assert fit(module(), tmp_path / "rest", ckpt_path=tmp_path / "part" / "stopped.ckpt").seen == expected[steps:]
