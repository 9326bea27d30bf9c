"""An owner's mark in what a network answers: images that only a key can make, with classes that only it knows.

A network that has been trained on a few of them in every batch gives them the classes of the key, and can be claimed by
its answers alone, without a look at its weights. The classes are drawn by the key, each with the same probability
whatever the image shows: a network without a connection to the key agrees on each with probability 1 / classes.

Source: the third scheme of Chen et al., "You are caught stealing my winning lottery ticket!" (NeurIPS 2021, arXiv
2111.00162). Deviations: images are made from the key, so that it is all an owner has to keep, and a p-value stands
beside the accuracy.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bnfree.tickets.generators import layer_generator
from bnfree.tickets.keyed import check_key, key_digest
from bnfree.tickets.verification import binomial

GRID = 8
"""A trigger image is this many random values high and wide, whatever the size at which it is drawn."""


def trigger_images(
    key: str, message: str, count: int, shape: tuple[int, int, int], num_classes: int
) -> tuple[Tensor, Tensor]:
    """The trigger images of a key, and their classes.

    Each image is a grid of 8 x 8 uniform values a channel, of mean 0 and variance 1, interpolated to its size: what
    networks are given after the usual normalisation, and the same pattern at every size. From SHA-256 and SHAKE-256, as
    the marks in masks.

    Args:
        key: the owner's secret, at least 16 characters.
        message: what is claimed; the claim needs the same text.
        count: number of images.
        shape: channels, height and width.
        num_classes: of the network.

    Returns:
        Images (count, C, H, W), float32, and classes (count,), int64.

    Raises:
        InputError: a short key.
    """
    check_key(key)
    channels, height, width = shape
    patterns, classes = [], []
    for number in range(count):
        secret = bytes.fromhex(key_digest(key, f"bnfree trigger:{len(message)}:{message}:{number}"))
        stream = hashlib.shake_256(secret + b"pattern").digest(channels * GRID * GRID)
        patterns.append(torch.frombuffer(bytearray(stream), dtype=torch.uint8).view(channels, GRID, GRID))
        classes.append(int.from_bytes(hashlib.shake_256(secret + b"class").digest(8), "little") % num_classes)
    # Bytes have mean 127.5 and variance (256^2 - 1) / 12.
    values = (torch.stack(patterns).float() - 127.5) / ((256**2 - 1) / 12) ** 0.5
    images = F.interpolate(values, size=(height, width), mode="bilinear", align_corners=False)
    return images, torch.tensor(classes)


def triggers_of_batch(key: str, count: int, number: int, epoch: int, batch: int, rank: int) -> Tensor:
    """Which triggers go into a batch, a function of its place in the training alone.

    Args:
        key: the owner's secret.
        count: how many triggers there are.
        number: how many of them the batch gets, at most `count`.
        epoch: of the training.
        batch: of the epoch.
        rank: of the process.

    Returns:
        Different indices (number,).
    """
    generator = layer_generator(0, key_digest(key, f"bnfree trigger batch:{epoch}:{batch}:{rank}"))
    return torch.randperm(count, generator=generator)[:number]


@dataclass(frozen=True)
class TriggerClaim:
    """What a network answers to the triggers of a key."""

    count: int
    """Number of triggers."""
    agreeing: int
    """How many have got the class of the key."""
    num_classes: int
    """Among how many."""
    p_value: float
    """Probability that a network without a connection to the key agrees on as many or more."""

    @property
    def accuracy(self) -> float:
        """Share of the triggers with the class of the key."""
        return self.agreeing / self.count


def claim(answers: Tensor, classes: Tensor, num_classes: int) -> TriggerClaim:
    """Compares a network's answers with the classes of a key.

    One p-value is for one key and one message, which were fixed before the network was there.

    Args:
        answers: classes (N,) that the network gives the triggers.
        classes: classes (N,) of the key.
        num_classes: of the network.
    """
    agreeing = int((answers.cpu() == classes.cpu()).sum())
    p_value = min(float(binomial(len(classes), 1 / num_classes)[agreeing:].sum()), 1.0)
    return TriggerClaim(len(classes), agreeing, num_classes, p_value)
