"""Where images come from: a set of labelled images that can make loaders over parts of itself."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from datamodules.loader import BatchLoader, TensorLoader
from datamodules.sampler import GlobalBatchSampler


class ImageSource(ABC):
    """A set of N labelled images.

    Attributes:
        labels: Shape (N,), int64.
    """

    labels: Tensor

    @abstractmethod
    def loader(
        self, indices: Tensor, targets: Tensor, sampler: GlobalBatchSampler, augment: bool, seed: int
    ) -> BatchLoader:
        """A loader over the images `indices` (M,) that gives `targets` (M,) with them."""

    @abstractmethod
    def images(self, indices: Tensor) -> Tensor:
        """The images `indices` (n,) without augmentation, shape (n, C, H, W), uint8."""

    @abstractmethod
    def name(self, index: int) -> str:
        """A name for an image, unique in the data set, such as `test/00012` or the path of its file."""


class TensorSource(ImageSource):
    """A set in memory.

    Args:
        images: Shape (N, C, H, W), uint8.
        labels: Shape (N,), int64.
        padding: Padding of the random crop in training, in pixels.
        flip: Mirror images at random in training.
        names: A name per image, or one prefix for names such as `test/00012`.
    """

    def __init__(self, images: Tensor, labels: Tensor, padding: int, flip: bool, names: str | list[str]) -> None:
        self._images, self.labels = images.contiguous(), labels.to(torch.int64)
        self.padding, self.flip, self._names = padding, flip, names

    def loader(
        self, indices: Tensor, targets: Tensor, sampler: GlobalBatchSampler, augment: bool, seed: int
    ) -> TensorLoader:
        """A loader over the images `indices` (M,), with the random crop and flip if `augment`."""
        padding = self.padding if augment else None
        return TensorLoader(self._images, targets, indices, sampler, padding, self.flip, seed)

    def images(self, indices: Tensor) -> Tensor:
        """The images `indices` (n,), shape (n, C, H, W), uint8."""
        return self._images.index_select(0, indices)

    def name(self, index: int) -> str:
        """The image's own name, or the prefix and its five-digit place."""
        return f"{self._names}/{index:05d}" if isinstance(self._names, str) else self._names[index]
