"""Random draws as functions of (seed, epoch, image), independent of the global random state.

Order and augmentation of a run must not depend on the batch size, the number of processes or workers, or on where the
run was resumed. Hence every draw comes from a generator of its own whose seed is a hash of what the draw belongs to.
"""

import hashlib
import random

import torch
from torch import Tensor


def generator_for(*key: object) -> torch.Generator:
    """A CPU generator seeded by a hash of `key`, e.g. `generator_for("order", seed, epoch)`.

    A hash and not `seed + epoch`, which would make epoch 1 of seed 0 repeat epoch 0 of seed 1.
    """
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def random_for(seed: int, epoch: int, image: int) -> random.Random:
    """Python's generator for one image in one epoch; a hundred times cheaper to seed than a tensor of draws."""
    return random.Random(f"{seed}/{epoch}/{image}")


def epoch_order(num_images: int, seed: int, epoch: int) -> Tensor:
    """The training order of an epoch: a permutation of `num_images` positions, shape (num_images,), int64."""
    return torch.randperm(num_images, generator=generator_for("order", seed, epoch))


def subset_order(num_images: int, size: int, seed: int, epoch: int, replacement: bool = False) -> Tensor:
    """The images of an epoch that sees a subset of the training part, in their order (repeated random subsets, RS2).

    Source: Okanovic et al., "Repeated random sampling for minimizing the time-to-accuracy of learning" (ICLR 2024,
    arXiv 2305.18424).

    Args:
        num_images: Number N of images in the part.
        size: Images n of an epoch, 1..N.
        seed: Seed of the run's data.
        epoch: Epoch, from 0.
        replacement: True: the first n of a permutation of each epoch. False: permutations stand one behind the other,
            and each epoch takes the next n, so that every image is seen once before one is seen again.

    Returns:
        Positions, shape (n,), int64; `epoch_order` for n = N.
    """
    if replacement:
        return epoch_order(num_images, seed, epoch)[:size]
    first, last = epoch * size, (epoch + 1) * size
    rounds = range(first // num_images, (last - 1) // num_images + 1)
    orders = torch.cat([epoch_order(num_images, seed, r) for r in rounds])
    start = first - rounds[0] * num_images
    return orders[start : start + size]


def partner_order(num_images: int, seed: int, epoch: int) -> Tensor:
    """The image with which each one is mixed in an epoch: a permutation of `num_images` positions, int64."""
    return torch.randperm(num_images, generator=generator_for("partner", seed, epoch))


def augmentation_epoch(epoch: int, cycle: int | None) -> int:
    """The epoch whose augmentation `epoch` has, where augmentation repeats after `cycle` epochs; None: its own."""
    return epoch if cycle is None else epoch % cycle


def epoch_crops_and_flips(num_images: int, padding: int, flip: bool, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """Draw crop offsets and flips of every image of a set for one epoch.

    Args:
        num_images: Size N of the whole set. Draws are indexed by the image's place in it, so an image keeps its draw
            when a split or a limit takes other images away.
        padding: Offsets are uniform in 0..2 * padding.
        flip: Flip with probability 1/2; never if false.
        seed: Seed of the run's data.
        epoch: Epoch, from 0.

    Returns:
        Offsets (N, 2) int64 as (row, column), and flips (N,) bool.
    """
    generator = generator_for("augmentation", seed, epoch)
    offsets = torch.randint(0, 2 * padding + 1, (num_images, 2), generator=generator)
    flips = torch.rand(num_images, generator=generator) < 0.5
    return offsets, flips if flip else torch.zeros_like(flips)


def stratified_split(labels: Tensor, holdout: int, seed: int) -> tuple[Tensor, Tensor]:
    """Split a set in two with the classes in proportion in both.

    Each class gives its share of `holdout` rounded down; the images still missing come one each from the classes with
    the largest remainder.

    Args:
        labels: Shape (N,), int64.
        holdout: Number of images to hold out, 0..N.
        seed: Seed of the split.

    Returns:
        Indices of the rest (N - holdout,) and of the held-out part (holdout,), int64, both in the same shuffled order.
    """
    order = torch.randperm(len(labels), generator=generator_for("split", seed))
    if len(labels) == 0:
        return order, order
    counts = torch.bincount(labels)
    shares = holdout * counts
    quota = shares // len(labels)
    remainders = shares % len(labels)
    quota[torch.argsort(remainders, descending=True, stable=True)[: holdout - int(quota.sum())]] += 1

    shuffled = labels[order]
    by_class = torch.argsort(shuffled, stable=True)
    first = torch.cumsum(counts, 0) - counts
    rank_in_class = torch.empty_like(by_class)
    rank_in_class[by_class] = torch.arange(len(labels)) - first[shuffled[by_class]]
    held = rank_in_class < quota[shuffled]
    return order[~held], order[held]
