"""What is right in one process and may be wrong in several."""

from datetime import timedelta

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from bnfree.backbones import ReActNet18
from bnfree.callbacks import CollapseCheck, NonFiniteStop, WeightStandardizationCheck
from bnfree.lightning_modules.training.default_callbacks import EpochLines

SIZE = {"num_classes": 10, "width": 4, "blocks_per_stage": [1, 1, 1, 1]}


class Measured(LightningModule):
    """Computes its accuracy at an epoch's end itself, and validates each process's images alone."""

    def __init__(self):
        super().__init__()
        self.backbone = ReActNet18(**SIZE)
        self.accuracy = MulticlassAccuracy(10, average="micro")
        self.images = []

    def training_step(self, batch, batch_idx):
        logits = self.backbone(batch[0])
        self.accuracy.update(logits, batch[1])
        loss = F.cross_entropy(logits, batch[1])
        self.log("train/loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def on_train_epoch_end(self):
        self.accuracy.compute()
        self.images.append(int(self.accuracy.tp + self.accuracy.fn))
        images = self.all_gather(torch.tensor(self.images[-1]))
        assert images.tolist() == [4, 4]
        self.accuracy.reset()

    def validation_step(self, batch, batch_idx):
        wrong = self.current_epoch == 0 and self.trainer.global_rank == 1
        self.log("val/loss", F.cross_entropy(self.backbone(batch[0]), batch[1]) * (torch.nan if wrong else 1))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


CALLBACKS = {
    # Metrics are added up by whoever asks for them first, in all processes together.
    "lines": lambda _: [EpochLines()],
    "collapse": lambda _: [CollapseCheck()],
    # What one callback measures, another one follows in every process.
    "followed": lambda _: [
        WeightStandardizationCheck(every_n_steps=1, action="log"),
        EarlyStopping("ws/forward_error", check_on_train_epoch_end=True),
    ],
    # A metric that is not finite in one process alone.
    "monitored": lambda folder: [
        NonFiniteStop("skip"), ModelCheckpoint(folder, "best", "val/loss", save_top_k=1, enable_version_counter=False),
    ],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLBACKS)
@pytest.mark.filterwarnings("ignore")
def test_two_processes_do_the_same_at_the_end_of_an_epoch(name, make_trainer, make_loader, tmp_path):
    strategy = DDPStrategy(start_method="fork", timeout=timedelta(seconds=60))
    callbacks = CALLBACKS[name](tmp_path)
    trainer = make_trainer(
        *callbacks, devices=2, strategy=strategy, max_epochs=2, enable_checkpointing=name == "monitored"
    )
    trainer.fit(Measured(), make_loader(), make_loader())
    assert trainer.state.finished
    if name == "monitored":
        # That of the first epoch was none to keep.
        assert torch.load(tmp_path / "best.ckpt", weights_only=False)["epoch"] == 1
