"""Data-free compression: channels that go, and the rounding of weights, are made up for in the next convolution.

Source: Bai et al., "Unified data-free compression: pruning and quantization without fine-tuning" (ICCV 2023, arXiv
2308.07209). A channel that goes is taken for a mix of the others, z_j = sum_i s_i z_i with s_i >= 0, for which a ReLU
is nearly linear, and the mix goes into the next convolution: W'[:, i] = W[:, i] + s_i W[:, j].

Deviations. The error of the mix is the expected squared one of the pre-activations for inputs as a scaled ReLU of this
network gives them, independent, of variance 1 and mean m: |filter|^2 + (m * sum(filter) + shift)^2; nothing of a batch
norm is needed, since statistics follow from the weights. Of the paper's two penalty weights (0.01 and 0.008) there is
one, in units of the layer, and larger, since that erred less where it was tried (`docs/compression.md`). The mix is the
exact minimum with s >= 0, not one whose negative numbers are dropped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bnfree.backbones.nf_resnet18 import RELU_GAMMA
from bnfree.compression.inner_channels import InnerChannels
from bnfree.errors import InputError

# Of gamma * relu(x) for a standard normal x.
MEAN_INPUT = RELU_GAMMA / math.sqrt(2 * math.pi)
SWEEPS, SETTLED = 200, 1e-9


@dataclass(frozen=True)
class DataFree:
    """Takes the weakest channels of a branch out, rounds weights to a few bits if wanted, and makes up for both.

    The strength of a channel is the product of the lengths of what it is made of and of what is made of it, which does
    not change when a factor moves through the ReLU.

    Raises:
        InputError: a value out of range.
    """

    ratio: float = 0.5
    """Share of each block's channels that go; one stays at least."""
    alpha: float = 1.0
    """Penalty on the mix, in units of the layer's mean squared row; infinite: nothing is made up for."""
    bits: int | None = None
    """Weights are multiples of max|w| / (2^(bits - 1) - 1) of their filter, still stored as floating-point numbers;
    None: they are not rounded."""

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise InputError(f"ratio={self.ratio} must be at least 0 and less than 1.")
        if not self.alpha >= 0:
            raise InputError(f"alpha={self.alpha} must be at least 0, or inf.")
        if self.bits is not None and not 2 <= self.bits <= 16:
            raise InputError(f"bits={self.bits} must be from 2 to 16.")

    def __call__(self, channels: InnerChannels) -> InnerChannels:
        """The channels that are left."""
        pruned = prune(channels, self.ratio, self.alpha)
        return pruned if self.bits is None else quantize(pruned, self.bits, self.alpha)


def prune(channels: InnerChannels, ratio: float, alpha: float) -> InnerChannels:
    """Takes the weakest channels out and puts their mixes into the next convolution.

    Args:
        channels: C of them.
        ratio: share that goes.
        alpha: see `DataFree`.
    """
    strength = channels.rows.norm(dim=1) * channels.outgoing.transpose(0, 1).flatten(1).norm(dim=1)
    order = strength.argsort(descending=True, stable=True)
    kept = order[: len(order) - int(ratio * len(order))].sort().values
    gone = order[len(kept) :]
    moments = _moments(channels)
    mix = nonnegative_mix(moments[gone], moments[kept], alpha * _size(moments))
    columns = channels.outgoing[:, kept] + torch.einsum("ojhw,ji->oihw", channels.outgoing[:, gone], mix)
    return channels.with_rows(channels.rows[kept], columns)


def quantize(channels: InnerChannels, bits: int, alpha: float) -> InnerChannels:
    """Rounds both convolutions; the second one makes up for the first one before it is rounded itself.

    Args:
        channels: C of them; shifts are not rounded.
        bits: at least 2.
        alpha: see `DataFree`; here the penalty is on what the mix differs from each channel's own rounded one.
    """
    rounded = InnerChannels(_rounded(channels.incoming, bits), channels.shift, channels.outgoing)
    exact = _moments(channels)
    mix = nonnegative_mix(exact, _moments(rounded), alpha * _size(exact), torch.eye(len(exact), dtype=exact.dtype))
    columns = torch.einsum("ojhw,ji->oihw", channels.outgoing, mix)
    return InnerChannels(rounded.incoming, rounded.shift, _rounded(columns, bits))


def nonnegative_mix(targets: Tensor, parts: Tensor, penalty: float, around: Tensor | None = None) -> Tensor:
    """S >= 0 of least |targets - S parts|^2 + penalty |S - around|^2, by coordinate descent, which reaches the minimum.

    Args:
        targets: (T, n).
        parts: (P, n).
        penalty: at least 0, or infinite.
        around: (T, P), at least 0; None: 0.

    Returns:
        (T, P).
    """
    mix = parts.new_zeros(len(targets), len(parts)) if around is None else around.clone()
    if math.isinf(penalty):
        return mix
    gram = parts @ parts.T
    wanted = targets @ parts.T + penalty * mix
    gram.diagonal().add_(penalty)
    for _ in range(SWEEPS):
        before = mix.clone()
        for i in gram.diagonal().nonzero().flatten().tolist():
            mix[:, i] += ((wanted[:, i] - mix @ gram[:, i]) / gram[i, i]).clamp(min=-mix[:, i])
        if (mix - before).abs().sum() <= SETTLED * (1 + mix.sum()):
            break
    return mix


def _moments(channels: InnerChannels) -> Tensor:
    """Rows whose squared length is the expected square of the pre-activation, (C, I * k * k + 1)."""
    mean = MEAN_INPUT * channels.incoming.flatten(1).sum(1) + channels.shift
    return torch.cat([channels.incoming.flatten(1), mean[:, None]], 1)


def _size(rows: Tensor) -> float:
    return float(rows.square().sum(1).mean())


def _rounded(weight: Tensor, bits: int) -> Tensor:
    """A weight (O, ...) on each filter's grid of 2^bits - 1 values."""
    step = weight.flatten(1).abs().amax(1) / (2 ** (bits - 1) - 1)
    step = torch.where(step > 0, step, 1.0).view(-1, *[1] * (weight.dim() - 1))
    return (weight / step).round() * step
