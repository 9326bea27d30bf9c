"""Comp-sum losses: a family from sum-exponential over cross-entropy and generalised cross-entropy to absolute error."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bnfree.errors import InputError

SMALLEST_PROBABILITY = 1e-7


class CompSum:
    """(p^(tau - 1) - 1) / (1 - tau), where p is the probability of the true class; -log p for tau = 1.

        tau = 0         1/p - 1, the sum-exponential loss
        tau = 1         cross-entropy
        1 < tau < 2     generalised cross-entropy with q = tau - 1, bounded by 1/q: wrong labels pull less
        tau = 2         1 - p, half the mean absolute error

    Source: Mao, Mohri and Zhong, "Cross-entropy loss functions: theoretical analysis and applications" (ICML 2023,
    arXiv 2304.07288); tau = 1.7 is the q = 0.7 that Zhang and Sabuncu (NeurIPS 2018) use against label noise. For
    tau < 1 a p below 1e-7 counts as 1e-7. Deviation: without the smooth adversarial version of the paper.

    Args:
        tau: at least 0, finite.

    Shape: logits (N, classes) of any floating dtype and labels int64 (N,) to their mean, of shape (), in float32, or
    float64 for logits in float64.

    Raises:
        InputError: `tau` out of range; later labels that are probabilities, which only tau = 1 is defined for.

    Example:
        >>> import torch
        >>> CompSum(tau=2.0)(torch.zeros(3, 4), torch.tensor([0, 1, 2]))
        tensor(0.7500)
    """

    def __init__(self, tau: float = 1.7) -> None:
        if not 0 <= tau < math.inf:
            raise InputError(f"tau={tau} must be a finite number of at least 0; 1 is the cross-entropy.")
        self.tau = tau

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean loss, of shape ()."""
        log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)
        if labels.is_floating_point():
            if self.tau != 1:
                raise InputError(f"tau={self.tau} needs labels that are classes; mixed images go with tau=1 alone.")
            return -(labels.to(log_p.dtype) * log_p).sum(1).mean()
        log_p = log_p.gather(1, labels[:, None]).squeeze(1)
        if self.tau == 1:
            return -log_p.mean()
        if self.tau < 1:
            log_p = log_p.clamp(min=math.log(SMALLEST_PROBABILITY))
        # expm1, as the difference of two numbers near 1 would lose all digits where tau is.
        return (torch.expm1((self.tau - 1) * log_p) / (1 - self.tau)).mean()
