"""Which images make which batch, on which process."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from bnfree.datamodules.randomness import augmentation_epoch, partner_order, subset_order
from bnfree.errors import InputError


class GlobalBatchSampler(DistributedSampler[Tensor]):
    """Yields one tensor of positions per batch; the processes share each global batch between them.

    Global batch t holds the images order[t * G : (t + 1) * G] with G = batch_size * world_size, and the ranks take
    consecutive parts of it. So together they see what one process with batch size G sees. The order is a permutation
    drawn from (seed, epoch) in training and 0, 1, 2, ... in evaluation.

    Training drops the last images that do not fill a global batch. Evaluation yields each image exactly once, with the
    same number of batches on each rank and no empty batch: a remainder smaller than the number of processes joins the
    batch before, so batches are up to one image larger than `batch_size` then.

    It is a `DistributedSampler` so that Lightning does not replace it. Lightning calls `set_epoch`; without Lightning,
    call it before each epoch.

    Args:
        num_images: Number of images in the part.
        batch_size: Images per batch on one process.
        world_size: Number of processes.
        rank: This process, 0..world_size - 1.
        shuffle: Permute the order anew in each epoch.
        drop_last: Drop what does not fill a global batch (training).
        seed: Seed of the order.
        part: Name of the part, for messages.
        subset: Images of an epoch, another subset in each; None for all. See `subset_order`.
        replacement: An epoch's subset may hold images of the epochs just before.
        partners: After the images of a batch as many others of the part, which a permutation drawn from (seed, epoch)
            assigns to them; the epoch counts modulo `cycle`.
        cycle: Number of epochs after which partners repeat; None for never.

    Raises:
        InputError: there are fewer images than one global batch (training) or than processes (evaluation).
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        world_size: int = 1,
        rank: int = 0,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        part: str = "train",
        subset: int | None = None,
        replacement: bool = False,
        partners: bool = False,
        cycle: int | None = None,
    ) -> None:
        super().__init__(range(num_images), world_size, rank, shuffle, seed, drop_last)  # type: ignore[arg-type]
        self.part_size, self.replacement, self.partners, self.cycle = num_images, replacement, partners, cycle
        self.num_images = num_images = num_images if subset is None else subset
        self.global_batch_size = batch_size * world_size
        if drop_last and num_images < self.global_batch_size:
            processes = f" on each of {world_size} processes" if world_size > 1 else ""
            raise InputError(
                f"batch_size={batch_size}{processes} needs {self.global_batch_size} images for one batch, but the "
                f"{part} part has {num_images}: give a batch_size of at most {max(1, num_images // world_size)}."
            )
        if num_images < world_size:
            raise InputError(
                f"The {part} part has {num_images} images for {world_size} processes: each needs at least one, so run "
                "on fewer devices or hold out more images."
            )
        full, rest = divmod(num_images, self.global_batch_size)
        self.num_batches = full + (0 if drop_last or rest < world_size else 1)
        # A small remainder has no batch to join when there is none before: then num_images < world_size, refused above.

    def __len__(self) -> int:
        """Number of batches, equal on all ranks."""
        return self.num_batches

    def batches_from(self, first_image: int) -> int:
        """Number of batches that are left of an epoch of which so many images have been seen, by all ranks together."""
        if not self.drop_last:
            return self.num_batches - first_image // self.global_batch_size
        return (self.num_images - first_image) // self.global_batch_size

    def __iter__(self) -> Iterator[Tensor]:
        """Positions of this rank's images, one int64 tensor (n,) per batch of the current epoch."""
        return self.iterate_from(0)

    def iterate_from(self, first_image: int) -> Iterator[Tensor]:
        """As `iter`, of what is left after the first images of the epoch's order, those of all ranks counted."""
        order = torch.arange(self.num_images)
        if self.shuffle:
            order = subset_order(self.part_size, self.num_images, self.seed, self.epoch, self.replacement)
        partner = order
        if self.partners:
            partner = partner_order(self.part_size, self.seed, augmentation_epoch(self.epoch, self.cycle))
        batches = self.batches_from(first_image)
        for t in range(batches):
            start = first_image + t * self.global_batch_size
            last = t == batches - 1 and not self.drop_last
            size = self.num_images - start if last else self.global_batch_size
            lower = start + self.rank * size // self.num_replicas
            upper = start + (self.rank + 1) * size // self.num_replicas
            positions = order[lower:upper]
            yield torch.cat([positions, partner[positions]]) if self.partners else positions
