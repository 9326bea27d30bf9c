"""A data set of ten lines and a trainer without files, for the tests of the modules."""

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset


class BrightCorners(LightningDataModule):
    """Four classes of 8x8 noise images, each with one bright corner."""

    num_classes = 4
    image_shape = (3, 8, 8)

    def __init__(self, batch_size: int = 16, images: int = 64) -> None:
        super().__init__()
        self.batch_size = batch_size
        generator = torch.Generator().manual_seed(1)
        labels = torch.arange(images) % 4
        pictures = torch.randn(images, 3, 8, 8, generator=generator)
        for i, label in enumerate(labels.tolist()):
            row, column = 4 * (label // 2), 4 * (label % 2)
            pictures[i, :, row : row + 4, column : column + 4] += 2
        self.dataset = TensorDataset(pictures, labels)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.dataset, self.batch_size)

    val_dataloader = test_dataloader = train_dataloader


@pytest.fixture
def corners():
    return BrightCorners()


@pytest.fixture
def make_trainer(tmp_path):
    def make(**kwargs):
        options = {
            "accelerator": "cpu",
            "max_epochs": 1,
            "default_root_dir": tmp_path,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
        }
        saves = any(isinstance(c, ModelCheckpoint) for c in kwargs.get("callbacks", []))
        return Trainer(**{**options, "enable_checkpointing": saves, **kwargs})

    return make
