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
        self._first_image = 0
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
        epoch = self.sampler.epoch
        self._first_image = self._place(epoch)
        self._resume = None
        self._epoch, self._delivered = epoch, 0
        for batch in self.batches(epoch, self._first_image):
            self._delivered += 1
            yield batch

    @abstractmethod
    def batches(self, epoch: int, first_image: int) -> Iterator[RawBatch]:
        """The batches of `epoch` after its first images."""

    def batches_done(self, epoch: int) -> int:
        """Of the batches of an epoch, as many as an interrupted run's images make up; 0 in all but its epoch."""
        if self._resume is None or self._resume[0] != epoch:
            return 0
        return len(self) - self.sampler.batches_from(self._resume[1])

    def _place(self, epoch: int) -> int:
        if self._resume is None or self._resume[0] != epoch:
            return 0
        # What is left may be too little for a batch: then the epoch is over, and the trainer asks for the next one.
        return self._resume[1] if self.sampler.batches_from(self._resume[1]) > 0 else 0

    def close(self) -> None:  # noqa: B027 - not every loader has something to release
        """Release what the loader holds besides memory, such as processes."""

    def state_dict(self, batches: int | None = None) -> dict[str, Any]:
        """The epoch and the number of images, of all ranks together, that have been handed out in it.

        Args:
            batches: at most those of so many batches of the epoch.
        """
        done = len(self) - self.sampler.batches_from(self._first_image)
        delivered = self._delivered if batches is None else max(0, min(self._delivered, batches - done))
        return {"epoch": self._epoch, "images": self._first_image + delivered * self.sampler.global_batch_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the saved images when the saved epoch is iterated next; other epochs start at their first."""
        # Earlier checkpoints counted batches, which were of the same size.
        images = state["images"] if "images" in state else state["batches"] * self.sampler.global_batch_size
        self._resume = (state["epoch"], images)


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

    def batches(self, epoch: int, first_image: int) -> Iterator[RawBatch]:
        """The batches of `epoch` after its first images."""
        draws = variant = None
        if self.padding is not None:
            variant = augmentation_epoch(epoch, self.cycle)
            draws = epoch_crops_and_flips(len(self.images), self.padding, self.flip, self.seed, variant)
        for positions in self.sampler.iterate_from(first_image):
            indices = self.indices[positions]
            # index_select copies whole images; indexing with brackets is ten times slower here.
            images, targets = self.images.index_select(0, indices), self.targets[positions]
            if draws is None:
                yield RawBatch(images, targets, positions=positions.numpy())
            else:
                yield RawBatch(
                    images, targets, draws[0][indices], draws[1][indices], positions=positions.numpy(), variant=variant
                )
