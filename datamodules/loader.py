"""Iterables over batches that resume in the middle of an epoch."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from bnfree.datamodules.batches import RawBatch
from bnfree.datamodules.randomness import augmentation_epoch, epoch_crops_and_flips
from bnfree.datamodules.sampler import GlobalBatchSampler


class BatchLoader(ABC):
    """Base of the loaders: counts the batches it has handed out, so that a checkpoint knows where to go on.

    Deliberately not a `torch.utils.data.DataLoader`: Lightning rebuilds those with samplers of its own.

    Args:
        sampler: Says which images make which batch.
    """

    # Lightning looks at this attribute of everything that has a sampler.
    batch_sampler = None

    def __init__(self, sampler: GlobalBatchSampler) -> None:
        self.sampler = sampler
        self._epoch = 0
        self._delivered = 0
        self._resume: tuple[int, int] | None = None

    def __len__(self) -> int:
        """Number of batches of an epoch on this process."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[RawBatch]:
        """Batches of the sampler's epoch; after `load_state_dict`, those of the interrupted epoch not yet seen.

        A generator on purpose: a resuming Trainer calls `iter` before it sets the epoch and `next` after, so the
        epoch must not be looked at before the first `next`.
        """
        epoch, start = self.sampler.epoch, 0
        if self._resume is not None and self._resume[0] == epoch and self._resume[1] < len(self):
            start = self._resume[1]
        self._resume = None
        self._epoch, self._delivered = epoch, start
        for batch in self.batches(epoch, start):
            self._delivered += 1
            yield batch

    @abstractmethod
    def batches(self, epoch: int, start: int) -> Iterator[RawBatch]:
        """The batches of `epoch` from number `start` on."""

    def close(self) -> None:  # noqa: B027 - not every loader has something to release
        """Release what the loader holds besides memory, such as processes."""

    def state_dict(self) -> dict[str, Any]:
        """The epoch and the number of batches handed out in it."""
        return {"epoch": self._epoch, "batches": self._delivered}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the saved batch when the saved epoch is iterated next; other epochs start at their first."""
        self._resume = (state["epoch"], state["batches"])


class TensorLoader(BatchLoader):
    """Batches of a set that is held in memory.

    Args:
        images: The whole set, shape (N, C, H, W), uint8.
        targets: Shape (M,), int64: one per position of the part.
        indices: Shape (M,), int64: where the part's images are in `images`.
        sampler: Yields positions in the part, 0..M - 1.
        padding: Padding of the random crop in pixels; None for no augmentation.
        flip: Mirror images at random; only with `padding`.
        seed: Seed of the augmentation.
        cycle: Number of epochs after which the augmentation repeats; None for never.
    """

    def __init__(
        self,
        images: Tensor,
        targets: Tensor,
        indices: Tensor,
        sampler: GlobalBatchSampler,
        padding: int | None = None,
        flip: bool = False,
        seed: int = 0,
        cycle: int | None = None,
    ) -> None:
        super().__init__(sampler)
        self.images, self.targets, self.indices = images, targets, indices
        self.padding, self.flip, self.seed, self.cycle = padding, flip, seed, cycle

    def batches(self, epoch: int, start: int) -> Iterator[RawBatch]:
        """The batches of `epoch` from number `start` on."""
        draws = None
        if self.padding is not None:
            variant = augmentation_epoch(epoch, self.cycle)
            draws = epoch_crops_and_flips(len(self.images), self.padding, self.flip, self.seed, variant)
        for number, positions in enumerate(self.sampler):
            if number < start:
                continue
            indices = self.indices[positions]
            # index_select copies whole images; indexing with brackets is ten times slower here.
            images, targets = self.images.index_select(0, indices), self.targets[positions]
            if draws is None:
                yield RawBatch(images, targets, positions=positions.numpy())
            else:
                yield RawBatch(images, targets, draws[0][indices], draws[1][indices], positions=positions.numpy())
