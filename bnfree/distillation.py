"""The loss that makes a network learn a teacher's probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from bnfree.errors import InputError


def mean_probabilities(logits: Sequence[Tensor], temperature: float = 1.0) -> Tensor:
    """Mean over teachers of softmax(logits / temperature): of their probabilities, not of their logits.

    Source: MEAL V2 (Shen and Savvides, arXiv 2009.08453).

    Args:
        logits: of each teacher, shape (N, K), floating point.
        temperature: above 1 the probabilities are softer.

    Returns:
        Shape (N, K); in float32, or float64 for logits in float64.

    Raises:
        InputError: no teacher, or `temperature` not above 0.
    """
    _check(temperature)
    if not logits:
        raise InputError("logits holds those of no teacher; give at least one.")
    total = sum(_at_least_float32(one).div(temperature).softmax(1) for one in logits)
    return torch.as_tensor(total) / len(logits)


def distillation_loss(logits: Tensor, probabilities: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 times the cross-entropy of softmax(logits / T) to a teacher's probabilities, averaged over the images.

    With T = 1 this is the `DistributionLoss` of ReActNet and BNN_NoBN. It differs from the Kullback-Leibler divergence
    by the teacher's entropy, a constant: the gradient with respect to the logits is T / N * (softmax(logits / T) -
    probabilities) for both. The factor T^2 is that of Hinton et al. (arXiv 1503.02531): the gradient of softened
    targets shrinks with 1 / T^2, and with the factor its size, and its share beside a loss on hard labels, hardly
    depend on T.

    Args:
        logits: the student's, shape (N, K), floating point.
        probabilities: the teacher's at the same temperature, shape (N, K), see `mean_probabilities`.
        temperature: T.

    Returns:
        Shape (), in float32, or float64 for logits in float64.

    Raises:
        InputError: another shape, or `temperature` not above 0.
    """
    _check(temperature)
    if probabilities.shape != logits.shape:
        raise InputError(
            f"probabilities has shape {tuple(probabilities.shape)}, the student's logits {tuple(logits.shape)}: the "
            "teacher must know the same classes."
        )
    logits = _at_least_float32(logits)
    return F.cross_entropy(logits / temperature, probabilities.to(logits.dtype)) * temperature**2


def corrected_distillation_loss(
    logits: Tensor, probabilities: Tensor, labels: Tensor, correction: float, temperature: float = 1.0
) -> Tensor:
    """`distillation_loss`, in part replaced by the label's cross-entropy for the images on which the teacher errs.

    For an image whose label is not the teacher's most probable class the loss is (1 - a) * soft + a * hard, where a is
    `correction`; for every other image it is soft. Source: BEANet's hard labels where the teacher is wrong, with an a
    that goes from 1 to 0 along a cosine over the training (`cosine_share`).

    Args:
        logits: the student's, shape (N, K), floating point.
        probabilities: the teacher's at the same temperature, shape (N, K).
        labels: int64 (N,).
        correction: a, from 0 to 1.
        temperature: T.

    Returns:
        Shape (), in float32, or float64 for logits in float64.

    Raises:
        InputError: another shape, or `temperature` not above 0.
    """
    soft = distillation_loss(logits, probabilities, temperature)
    logits = _at_least_float32(logits)
    each_soft = F.cross_entropy(logits / temperature, probabilities.to(logits.dtype), reduction="none")
    each_hard = F.cross_entropy(logits, labels, reduction="none")
    share = correction * (probabilities.argmax(1) != labels).to(logits.dtype)
    return soft + (share * (each_hard - each_soft * temperature**2)).mean()


def cosine_share(done: float) -> float:
    """A share that goes from 1 to 0 along half a cosine while a training goes from `done` = 0 to 1."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, done))))


def _check(temperature: float) -> None:
    if not 0 < temperature < float("inf"):
        raise InputError(f"temperature={temperature} must be a finite number greater than 0.")


def _at_least_float32(logits: Tensor) -> Tensor:
    # Under autocast logits have eight bits of mantissa, too few for the small probabilities that a teacher teaches by.
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
