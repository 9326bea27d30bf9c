"""What a checkpoint remembers of a data module."""

from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from torch.utils.data import DataLoader

from bnfree.datamodules import CIFAR10DataModule, DigitsDataModule

COMMON = {
    "data_dir": None, "batch_size": 64, "val_split": 0.15, "image_size": 16, "split_seed": 0, "augment": True,
    "seed": 0, "limit_train": None, "augmentation_cycle": None, "padding_mode": "zeros", "flips": "random", "cutout": 0,
    "rand_augment": 0, "rand_augment_magnitude": 9, "mixup": 0.0, "cutmix": 0.0, "epoch_fraction": 1.0,
    "epoch_replacement": False, "scores": None, "keep": 1.0, "skip_hardest": 0.0,
}  # fmt: skip


class Handed(DigitsDataModule):
    """Takes an object, which no checkpoint can hold safely."""

    def __init__(self, transform: object, limits: object = (1, [2.5, None]), **rest: object) -> None:
        super().__init__(**rest)
        self.transform, self.limits = transform, limits

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.randn(2, 32))


def test_all_arguments_of_a_subclass_are_kept_with_their_defaults():
    data = DigitsDataModule(batch_size=3, seed=5)
    assert dict(data.hparams) == {**COMMON, "batch_size": 3, "seed": 5}


def test_paths_are_kept_as_text():
    data = CIFAR10DataModule(Path("data") / "images", download=True)
    assert data.hparams["data_dir"] == str(Path("data") / "images")


def test_a_checkpoint_holds_them_and_leaves_out_objects(tmp_path):
    data = Handed(torch.relu, batch_size=4)
    assert data.transform is torch.relu
    trainer = Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_progress_bar=False, default_root_dir=tmp_path,
        limit_val_batches=0, enable_model_summary=False,
    )  # fmt: skip
    model = BoringModel()
    data.on_after_batch_transfer = lambda batch, _: batch
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    held = torch.load(tmp_path / "a.ckpt", weights_only=True)["datamodule_hyper_parameters"]
    assert dict(held) == {**COMMON, "limits": (1, [2.5, None]), "batch_size": 4}
