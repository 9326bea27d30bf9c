"""Training images in a fixed number of variants, so that what is computed from each can be stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bnfree.datamodules.batches import RawBatch
from bnfree.datamodules.extra_augmentation import ExtraAugmentation
from bnfree.datamodules.loader import BatchLoader
from bnfree.datamodules.sampler import GlobalBatchSampler
from bnfree.datamodules.sources import ImageSource
from bnfree.errors import InputError


class Part(NamedTuple):
    """Images `indices` (M,) of a source, in the order of evaluation."""

    source: ImageSource
    indices: Tensor


class AugmentationVariants(ABC):
    """What a data module says about the variants of its training images.

    Variant v of the training part is how it looks in epoch v: augmentation is a function of (seed, epoch, image). With
    `augmentation_cycle` n, epoch e shows variant e mod n; without augmentation there is variant 0 alone.
    """

    batch_size: int
    seed: int
    augmentation_cycle: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    extra: ExtraAugmentation

    @property
    @abstractmethod
    def augments(self) -> bool:
        """Whether training images are augmented."""

    @abstractmethod
    def _required_part(self, name: str, stage: str) -> Part: ...

    @abstractmethod
    def _processes(self) -> tuple[int, int]: ...

    @property
    def variants(self) -> int | None:
        """Number of variants in which each training image is shown; None if it is another one in every epoch."""
        return self.augmentation_cycle if self.augments else 1

    def variant_batches(self, variant: int) -> Iterator[RawBatch]:
        """This process's share of the training images in one variant, each once; before the transfer to a device.

        Args:
            variant: Which one, from 0.

        Yields:
            Batches whose targets are the images' positions in the training part, int64.
        """
        part = self._required_part("train", "fit")
        sampler = GlobalBatchSampler(len(part.indices), self.batch_size, *self._processes())
        sampler.set_epoch(variant)
        positions = torch.arange(len(part.indices))
        loader: BatchLoader = part.source.loader(part.indices, positions, sampler, self.augments, self.seed)
        try:
            yield from loader
        finally:
            loader.close()

    def variant_settings(self) -> dict[str, Any]:
        """What the variants depend on, as plain values.

        Raises:
            InputError: the images come from a source that has no fingerprint.
        """
        part = self._required_part("train", "fit")
        if self.augments and self.extra.mixes:
            raise InputError(
                "mixup and cutmix make images that are seen once; leave them out where answers are stored."
            )
        extra = {
            name: value for name, value in asdict(self.extra).items() if value != getattr(ExtraAugmentation(), name)
        }
        return {
            **(extra if self.augments else {}),
            "images": len(part.indices),
            "images and kind of augmentation": part.source.fingerprint(part.indices, self.augments),
            "augmentation": self.augments,
            "seed": self.seed if self.augments else None,
            "mean": list(self.mean),
            "std": list(self.std),
        }
