"""CIFAR-10 on a device: read from one archive, cropped and mirrored by index, no wait for the host in a step."""

from __future__ import annotations

import io
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

PADDING = 4
# Of CIFAR-10's training images, as bnfree.datamodules.CIFAR10DataModule has them.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class Images:
    """Normalised float32 images (N, 3, H, W) and int64 labels (N,) on a device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Images:
        """The same on a device."""
        return Images(self.images.to(device), self.labels.to(device))


def read_archive(path: Path, held_out: int) -> tuple[Images, Images, list[str]]:
    """Training and held-out images of an archive of `train/<class>/<number>.jpg`, and the names of the classes.

    Of every class those with the highest numbers are held out, so that they are the same in every run.

    Args:
        path: a tar file, compressed or not.
        held_out: number of images.
    """
    found: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
    with tarfile.open(path) as archive:
        for member in archive:
            if match := re.search(r"train/([^/]+)/(\d+)\.\w+$", member.name):
                file = archive.extractfile(member)
                assert file is not None
                found[match[1]][int(match[2])] = np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB"))
    names = sorted(found)
    if not names:
        raise SystemExit(f"{path} holds no train/<class>/<number>.jpg.")
    last = held_out // len(names)
    parts: dict[bool, list[np.ndarray]] = {True: [], False: []}
    labels: dict[bool, list[int]] = {True: [], False: []}
    for label, name in enumerate(names):
        numbers = sorted(found[name])
        for place, number in enumerate(numbers):
            kept = place >= len(numbers) - last
            parts[kept].append(found[name][number])
            labels[kept].append(label)
    train, test = (
        Images(normalized(torch.from_numpy(np.stack(parts[kept])).permute(0, 3, 1, 2)), torch.tensor(labels[kept]))
        for kept in (False, True)
    )
    return train, test, names


def toy_images(count: int) -> Images:
    """Noise around a pattern for each of ten classes: something that can be learned in no time."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(10, 3, 32, 32, generator=generator)
    labels = torch.arange(count) % 10
    return Images(patterns[labels] + 0.5 * torch.randn(count, 3, 32, 32, generator=generator), labels)


def normalized(pixels: Tensor) -> Tensor:
    """Float32 of 8-bit pixels (N, 3, H, W)."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std


class Batches:
    """Endless augmented batches: padded by reflection, cropped, mirrored in every other epoch, some cut out.

    Every image is mirrored by a coin in the first epoch and then in every other one (`alternating flip`,
    github.com/KellerJordan/cifar10-airbench). An epoch's last batch that would not be full is left out: all batches
    have one shape, as a graph needs.

    Args:
        data: on its device.
        batch: images of a batch.
        cutout: side of a square of zeros at a random place; 0 for none.
        seed: of all draws.
    """

    def __init__(self, data: Images, batch: int, cutout: int = 0, seed: int = 0) -> None:
        self.device = data.images.device
        self.labels, self.batch, self.cutout = data.labels, batch, cutout
        self.padded = F.pad(data.images, [PADDING] * 4, mode="reflect")
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.coins = torch.rand(len(data), generator=self.generator, device=self.device) < 0.5
        self.size = data.images.shape[-1]
        self.epoch = 0

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return len(self.labels) // self.batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch."""
        order = torch.randperm(len(self.labels), generator=self.generator, device=self.device)
        for start in range(0, self.steps * self.batch, self.batch):
            chosen = order[start : start + self.batch]
            yield self._augmented(chosen), self.labels[chosen]
        self.epoch += 1

    def _augmented(self, chosen: Tensor) -> Tensor:
        size, device = self.size, self.device
        moves = torch.randint(2 * PADDING + 1, (2, len(chosen), 1), generator=self.generator, device=device)
        columns = torch.arange(size, device=device).expand(len(chosen), size)
        mirrored = self.coins[chosen, None] ^ bool(self.epoch % 2)
        columns = torch.where(mirrored, size - 1 - columns, columns)
        rows = torch.arange(size, device=device) + moves[0]
        columns = columns + moves[1]
        images = self.padded[chosen[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        if self.cutout:
            corners = torch.randint(size, (2, len(chosen), 1), generator=self.generator, device=device)
            places = torch.arange(size, device=device) - corners + self.cutout // 2
            inside = (places >= 0) & (places < self.cutout)
            images = images.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0.0)
        return images.contiguous()


@torch.no_grad()
def accuracy(network: torch.nn.Module, data: Images, batch: int = 1000) -> float:
    """Percent of images classified as labelled, in float32 and evaluation mode."""
    training = network.training
    network.eval()
    right = torch.zeros((), dtype=torch.int64, device=data.labels.device)
    for images, labels in zip(data.images.split(batch), data.labels.split(batch), strict=True):
        right += (network(images).argmax(1) == labels).sum()
    network.train(training)
    return 100 * right.item() / len(data)
