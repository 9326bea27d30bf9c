"""The convolution of multi-prize tickets: frozen latent weights, and a learned score for each.

Source: Diffenderfer and Kailkhura, "Multi-prize lottery ticket hypothesis" (ICLR 2021, arXiv 2103.09377), after
Ramanujan et al., "What's hidden in a randomly weighted neural network?" (CVPR 2020, arXiv 1911.13299).

There the binary weight is B = a * sign(W) * M, and the gradient of a score S as if B were W * |S|: the constant a is
taken as it is and the mask M, which keeps the largest |S|, straight through. Hence dL/dS = dL/dB * W * sign(S).
Deviations, because a layer here is standardised over its survivors and has a gain per filter:

- What stands behind B = gain * mean|w_hat| * sign(w_hat) * M is not W but gain * w_hat, where w_hat = (W - mean) /
  ((std + eps) * sqrt(k)); mean, std and k are those of the filter's survivors, also for the pruned weights. Hence
  dL/dS = dL/dB * gain * w_hat * sign(S), with the statistics held constant. In a plain layer this is the source's rule.
- The scale mean|w_hat| is one number per filter, not per layer.
- sign(w_hat) is that of W minus the mean of the survivors, so that a weight near this mean may change its sign as the
  mask changes. With frozen weights of a single magnitude (`MultiPrize.make_signed_constant`) none does.
- sign(0) = +1, of scores too: a score of 0 still moves.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from bnfree.convolution import BinaryConv2d


class _ThroughScores(torch.autograd.Function):
    """A constant whose gradient goes to the scores: forward `value`, backward `gradient * slope`."""

    @staticmethod
    def forward(score: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return gradient * slope, None, None


class ScoredConv2d(BinaryConv2d):
    """A `BinaryConv2d` whose latent weight is frozen and whose mask follows from a learned `score`.

    Made of a `BinaryConv2d` by `MultiPrize`, never built. It computes what the layer computes without scores, and its
    state dict is the same: without scores, so that the network's checkpoint is that of a plain pruned network.
    """

    score: nn.Parameter

    def effective_weight(self) -> Tensor:
        """As of the layer without scores; the scores and the gain get gradients through it."""
        # Overridden, because the one-step gradient of a lean layer knows nothing of scores.
        if self.binary_weights:
            signs, scale = self._signs_and_scale()
            return signs * scale
        weight = self._prepared_weight()
        return weight if self.gain is None else self.gain * weight

    def _signs_and_scale(self) -> tuple[Tensor, Tensor]:
        signs, scale = super()._signs_and_scale()
        if torch.is_grad_enabled():
            signs = _ThroughScores.apply(self.score, signs, self._slope())
        return signs, scale

    def _prepared_weight(self) -> Tensor:
        weight = super()._prepared_weight()
        if torch.is_grad_enabled() and not self.binary_weights:
            weight = _ThroughScores.apply(self.score, weight, self._slope())
        return weight

    @torch.no_grad()
    def _slope(self) -> Tensor:
        """What the gradient of the prepared weight, or of the signs in front of the scale, is multiplied by."""
        weight, mask, dims = self.weight, cast(Tensor, self.mask), (1, 2, 3)
        # The pruned weights are measured against the survivors: these have mean and std as in `standardize_weight`.
        prepared = super()._prepared_weight()
        if self.standardize:
            count = mask.sum(dims, keepdim=True).clamp(min=1).to(weight.dtype)
            mean = (weight * mask).sum(dims, keepdim=True) / count
            std = (((weight - mean) * mask).square().sum(dims, keepdim=True) / count).sqrt()
            flat = std <= 8 * torch.finfo(weight.dtype).eps * mean.abs()
            mean, std = mean.masked_fill(flat, 0), std.masked_fill(flat, 1)
            prepared = torch.where(mask, prepared, (weight - mean) / ((std + self.eps) * count.sqrt()))
        else:
            prepared = weight
        slope = torch.where(self.score >= 0, prepared, -prepared)
        if not self.binary_weights:
            return slope
        scale = (prepared.abs() * mask).sum(dims, keepdim=True) / mask.sum(dims, keepdim=True).clamp(min=1)
        return torch.where(scale > 0, slope / scale, 0.0)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.pop(prefix + "score", None)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Taken out for the time, so that a strict load does not miss it.
        score = self._parameters.pop("score")
        try:
            super()._load_from_state_dict(state_dict, prefix, *args)
        finally:
            self._parameters["score"] = score
