"""Training images of CIFAR's shape per second: the in-memory data module against a DataLoader with PIL transforms.

    python benchmarks/cifar_loading.py

Both pad by 4 pixels, crop, mirror, scale to [0, 1], normalise and make batches of random 8-bit images in memory, on one
core: the DataLoader has no workers. They run in turn; a time is the least process CPU time of several rounds.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from bnfree.datamodules import CIFAR10DataModule
from bnfree.datamodules.base import ImageDataModule
from bnfree.datamodules.sources import TensorSource

ROUNDS = 7


class InMemory(ImageDataModule):
    """CIFAR-10's data module once it has read its files."""

    num_classes, image_shape, padding = 10, CIFAR10DataModule.image_shape, CIFAR10DataModule.padding
    mean, std = CIFAR10DataModule.mean, CIFAR10DataModule.std

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int) -> None:
        super().__init__(batch_size, val_split=0)
        self.source = TensorSource(images, labels, self.padding, flip=True, names="train")

    def load(self, part: str) -> TensorSource:  # noqa: D102
        return self.source


class WithPillow(Dataset[Any]):
    """What torchvision's CIFAR10 does with its usual transforms."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images.permute(0, 2, 3, 1).contiguous().numpy(), labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(InMemory.mean, InMemory.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--images", type=int, default=50_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    images, labels = torch.randint(0, 256, (options.images, 3, 32, 32), dtype=torch.uint8), torch.arange(options.images)
    data = InMemory(images, labels % 10, options.batch_size)
    loader = data.train_dataloader()
    with_pillow = DataLoader(WithPillow(images, labels), options.batch_size, shuffle=True, drop_last=True)

    def pillow() -> int:
        return sum(len(batch[0]) for number, batch in zip(range(25), with_pillow, strict=False))

    def in_memory() -> int:
        return sum(len(data.on_after_batch_transfer(batch, 0)[0]) for batch in loader)

    def left_to_the_cpu() -> int:
        return sum(len(batch.images) for batch in loader)

    variants = {"DataLoader with PIL": pillow, "in memory": in_memory, "in memory, the rest on a GPU": left_to_the_cpu}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for round_number in range(ROUNDS + 1):
        for name, run in variants.items():
            loader.sampler.set_epoch(round_number)
            start = time.process_time()
            count = run()
            seconds[name].append((time.process_time() - start) / count)
    slowest = min(seconds["DataLoader with PIL"][1:])
    for name, values in seconds.items():
        least = min(values[1:])
        print(f"{name:<29} {1 / least:9,.0f} images/s  {1e6 * least:7.2f} us per image  {slowest / least:6.1f}x")


if __name__ == "__main__":
    main()
