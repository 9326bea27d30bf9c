"""Whose mark masks bear: how much of a mark is found, and how probable this is for a key that has not signed them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from bnfree.errors import InputError
from bnfree.tickets.alignment import align
from bnfree.tickets.keyed import check_key, mark_of
from bnfree.tickets.ownership import LARGEST_SHARE, Signature, occupancy


@dataclass(frozen=True)
class Verification:
    """What was found of a mark."""

    bits: int
    """Number of marked kernels in the layers that are still there."""
    agreeing: int
    """How many of them are what the key says."""
    expected: float
    """How many would be by chance."""
    p_value: float
    """Probability that a key which has nothing to do with the masks finds as many or more. Smaller than a float64 can
    hold: 0."""
    occupied: float
    """Share of occupied kernels in the marked layers."""
    missing: tuple[str, ...]
    """Marked layers that the masks do not have, or not in the signed shape."""

    aligned: bool = False
    """Whether the mark was found after the channels had been put into the order of the signed masks."""

    @property
    def agreement(self) -> float:
        """Share of the bits that agree, 1 for an untouched mark."""
        return self.agreeing / self.bits


def verify(
    masks: Mapping[str, Tensor], key: str, signature: Signature, signed: Mapping[str, Tensor] | None = None
) -> Verification:
    """Looks for the mark of a key.

    The p-value is the upper tail of the number of agreements of a key without a connection to the masks, whose kernels
    are random ones: each bit 1 agrees with the share of occupied kernels of its layer, each bit 0 with the rest. It is
    computed from the masks at hand, so that masks which are nearly all occupied, or nearly all empty, prove nothing by
    that alone.

    One p-value is for one key and one message. Somebody who may choose among many can find a small one in any masks:
    ask for a key and a message that were fixed beforehand, which the published commitment shows, or multiply the
    p-value by the number of trials.

    A network computes the same with its channels in another order, in which the mark's places hold something else.
    With the signed masks at hand, the channels are put back first (`bnfree.tickets.alignment`): by all kernels that the
    key has not marked, so that the mark has no part in where they end, and a p-value means the same. The better of both
    looks counts, at twice its p-value.

    Args:
        masks: the masks in question, further pruned or regrown perhaps.
        key: the key of the claim.
        signature: the signature of the claim, see `sign`.
        signed: the masks that `sign` returned; None: looks in the order of `masks` only.

    Raises:
        InputError: a short key, none of the signed layers, or a signature that no `sign` has made.
    """
    check_key(key)
    counts = {n: mask.shape[:2] for n, mask in masks.items() if n in signature.layers}
    found = {name: entry for name, entry in signature.layers.items() if counts.get(name) == tuple(entry[:2])}
    if not found:
        raise InputError(
            f"masks has none of the signed layers ({', '.join(signature.layers)}) in the signed shape; give masks of "
            "the same architecture."
        )
    marks = {}
    for name, (filters, channels, count) in found.items():
        if not 0 < count <= LARGEST_SHARE * filters * channels:
            raise InputError(
                f"signature speaks of {count} marked kernels among the {filters * channels} of {name!r}, which no "
                "signature has; give the one that sign returned."
            )
        places, bits = mark_of(key, signature.message, name, filters, channels, count)
        marks[name] = (torch.tensor(places), torch.tensor(bits))
    missing = tuple(name for name in signature.layers if name not in found)
    plain = _look(masks, marks, missing)
    if signed is None:
        return plain
    left_out = {}
    for name, (indices, _) in marks.items():
        left_out[name] = torch.zeros(masks[name].shape[:2], dtype=torch.bool)
        left_out[name].view(-1)[indices] = True
    boolean, known = ({name: mask.detach().cpu().bool() for name, mask in m.items()} for m in (masks, signed))
    aligned = replace(_look(align(boolean, known, left_out), marks, missing), aligned=True)
    better = min(plain, aligned, key=lambda look: look.p_value)
    return replace(better, p_value=min(1.0, 2 * better.p_value))


def _look(
    masks: Mapping[str, Tensor], marks: Mapping[str, tuple[Tensor, Tensor]], missing: tuple[str, ...]
) -> Verification:
    """Looks in the order that the channels have."""
    agreeing, bits, kernels, occupied, expected = 0, 0, 0, 0, 0.0
    chances = torch.ones(1, dtype=torch.float64)
    for name, (indices, wanted) in marks.items():
        there = occupancy(masks[name].detach().cpu()).flatten()
        agreeing += int((there[indices] == wanted).sum())
        share, count, ones = there.double().mean().item(), len(wanted), int(wanted.sum())
        bits, kernels, occupied = bits + count, kernels + len(there), occupied + int(there.sum())
        for trials, probability in ((ones, share), (count - ones, 1 - share)):
            expected += trials * probability
            chances = _convolve(chances, binomial(trials, probability))
    p_value = min(float(chances[agreeing:].sum()), 1.0)
    return Verification(bits, agreeing, expected, p_value, occupied / kernels, missing)


def binomial(trials: int, probability: float) -> Tensor:
    """Probabilities of 0 to `trials` successes, float64."""
    k, p = torch.arange(trials + 1, dtype=torch.float64), torch.tensor(probability, dtype=torch.float64)
    n = torch.tensor(float(trials), dtype=torch.float64)
    ways = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return (ways + torch.xlogy(k, p) + torch.xlogy(n - k, 1 - p)).exp()


def _convolve(first: Tensor, second: Tensor) -> Tensor:
    """The distribution of a sum. All terms are positive, so that small tails keep their relative precision."""
    return F.conv1d(first.view(1, 1, -1), second.flip(0).view(1, 1, -1), padding=len(second) - 1).flatten()
