import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from bnfree.backbones import ReActNet18
from bnfree.callbacks import Throughput, TrainingBar
from bnfree.datamodules import DigitsDataModule
from bnfree.lightning_modules import ImageClassifier
from bnfree.lightning_modules.training.exact_loops import make_resumable


def loader():
    images = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(images, torch.arange(8) % 3), 2)


def classifier(num_classes=3):
    torch.manual_seed(0)
    network = ReActNet18(num_classes=num_classes, in_channels=1, width=4, blocks_per_stage=[1, 1, 1, 1])
    return ImageClassifier(network, calibration_images=4)


class Watch(Callback):
    """What stands behind the bar after each batch, and the loss that was minimised."""

    def __init__(self):
        self.shown, self.losses = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())
        self.shown.append(trainer.progress_bar_callback.get_metrics(trainer, pl_module))


@pytest.mark.parametrize("own", [True, False])
def test_it_shows_what_lightnings_shows(make_trainer, own):
    watch = Watch()
    bars = [TrainingBar()] if own else []
    trainer = make_trainer(Throughput(), *bars, watch, enable_progress_bar=True)
    trainer.fit(classifier(), loader())
    assert [shown["loss"] for shown in watch.shown] == pytest.approx(watch.losses)
    assert {"img/s", "wait"} <= set(watch.shown[-1])
    assert ("loss" in trainer.progress_bar_metrics) is not own


def test_on_a_gpu_it_is_drawn_now_and_then(make_trainer):
    class On:
        def __init__(self, device):
            self.root_device = torch.device(device)

    class Stub:
        is_global_zero = True

        def __init__(self, device):
            self.strategy = On(device)

    for device, given, rate in [("cpu", None, 1), ("cuda", None, 20), ("cuda", 3, 3)]:
        bar = TrainingBar(given)
        bar.setup(Stub(device), classifier(), "fit")
        assert bar.refresh_rate == rate


@pytest.mark.filterwarnings("ignore")
def test_an_epoch_goes_on_with_another_bar(make_trainer, tmp_path):
    def train(name, ckpt_path=None, **options):
        keep = ModelCheckpoint(
            tmp_path / name, filename="{step}", auto_insert_metric_name=False, every_n_train_steps=1, save_top_k=-1
        )
        module, data = classifier(10), DigitsDataModule(batch_size=50, limit_train=200)
        trainer = make_trainer(Throughput(), keep, enable_checkpointing=True, **options)
        make_resumable(trainer)
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=ckpt_path is not None)
        return module.state_dict(), trainer.callback_metrics

    bar = {"enable_progress_bar": True}
    for first, second in [({}, bar), (bar, {})]:
        name = f"{bool(first)}"
        whole, metrics = train(name, **first)
        rest, again = train("rest", tmp_path / name / "2.ckpt", **second)
        assert [key for key, value in whole.items() if not torch.equal(value, rest[key])] == []
        assert torch.equal(metrics["train/loss"], again["train/loss"])
