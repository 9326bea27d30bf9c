"""A small in-memory data module, stand-ins for a Trainer, and writers of small data sets."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_data import write_image

from bnfree.datamodules.base import ImageDataModule
from bnfree.datamodules.sources import TensorSource


class TinyDataModule(ImageDataModule):
    """60 training and 25 test images of 3x8x8; image i of training has i in its first channel."""

    num_classes = 4
    image_shape = (3, 8, 8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    padding = 2

    def __init__(self, num_train: int = 60, num_test: int = 25, flip: bool = True, **common: Any) -> None:
        super().__init__(**{"batch_size": 8, "val_split": 12, **common})
        self.sizes = {"train": num_train, "test": num_test}
        self.flip = flip

    def load(self, part):
        if part == "val":
            return None
        self.class_names = ["a", "b", "c", "d"]
        n = self.sizes[part]
        images = torch.randint(0, 256, (n, 3, 8, 8), generator=torch.Generator().manual_seed(n), dtype=torch.uint8)
        images[:, 0] = torch.arange(n, dtype=torch.uint8)[:, None, None]
        return TensorSource(images, torch.arange(n) % 4, self.padding, self.flip, part)


@pytest.fixture
def tiny() -> type[TinyDataModule]:
    return TinyDataModule


@pytest.fixture
def on_rank() -> Callable[[ImageDataModule, int, int], ImageDataModule]:
    """Gives a data module a stand-in for the Trainer of one of several processes."""

    def attach(module: ImageDataModule, world_size: int, rank: int) -> ImageDataModule:
        module.trainer = SimpleNamespace(world_size=world_size, global_rank=rank)  # type: ignore[assignment]
        return module

    return attach


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes class folders of images and returns the data folder."""

    def write(
        parts: dict[str, int], classes: tuple[str, ...] = ("cat", "dog", "eel"), size=(20, 28), kind: str = "png"
    ) -> Path:
        for part, count in parts.items():
            for label, name in enumerate(classes):
                for i in range(count):
                    write_image(tmp_path / part / name / f"{i:03d}.{kind}", *size, seed=1000 * label + i)
        return tmp_path

    return write
