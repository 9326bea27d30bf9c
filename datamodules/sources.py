"""Where images come from: a set of labelled images that can make loaders over parts of itself."""

import hashlib
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from bnfree.datamodules.loader import BatchLoader, TensorLoader
from bnfree.datamodules.sampler import GlobalBatchSampler
from bnfree.errors import InputError


class ImageSource(ABC):
    """A set of N labelled images.

    Attributes:
        labels: Shape (N,), int64.
    """

    labels: Tensor

    @abstractmethod
    def loader(
        self,
        indices: Tensor,
        targets: Tensor,
        sampler: GlobalBatchSampler,
        augment: bool,
        seed: int,
        cycle: int | None = None,
    ) -> BatchLoader:
        """A loader over the images `indices` (M,) that gives `targets` (M,) with them.

        Its augmentation repeats after `cycle` epochs, if that is given.
        """

    @abstractmethod
    def images(self, indices: Tensor) -> Tensor:
        """The images `indices` (n,) without augmentation, shape (n, C, H, W), uint8."""

    def fingerprint(self, indices: Tensor, augment: bool) -> str:
        """A hash that changes when the images `indices`, or the kind of their augmentation, do.

        Raises:
            InputError: this source has none.
        """
        raise InputError(f"{type(self).__name__} has no fingerprint, which what is stored about its images needs.")

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
        self,
        indices: Tensor,
        targets: Tensor,
        sampler: GlobalBatchSampler,
        augment: bool,
        seed: int,
        cycle: int | None = None,
    ) -> TensorLoader:
        """A loader over the images `indices` (M,), with the random crop and flip if `augment`."""
        padding = self.padding if augment else None
        return TensorLoader(self._images, targets, indices, sampler, padding, self.flip, seed, cycle)

    def images(self, indices: Tensor) -> Tensor:
        """The images `indices` (n,), shape (n, C, H, W), uint8."""
        return self._images.index_select(0, indices)

    def fingerprint(self, indices: Tensor, augment: bool) -> str:
        """A hash of the pixels, and of the crop and the flip."""
        digest = hashlib.sha256(repr((self.padding, self.flip) if augment else None).encode())
        for chunk in indices.split(4096):
            digest.update(self._images.index_select(0, chunk).numpy().tobytes())
        return digest.hexdigest()

    def name(self, index: int) -> str:
        """The image's own name, or the prefix and its five-digit place."""
        return f"{self._names}/{index:05d}" if isinstance(self._names, str) else self._names[index]
