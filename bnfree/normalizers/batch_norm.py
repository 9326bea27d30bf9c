"""Batch normalisation (Ioffe and Szegedy, arXiv 1502.03167), the twin that BN-free networks are compared with."""

from __future__ import annotations

from torch import Tensor, nn

from bnfree.errors import InputError


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """PyTorch's batch norm; plain weights, no alpha, no beta."""
    return nn.BatchNorm2d(channels)


def fold_batch_norm(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Factor and shift of batch norm with its running statistics, float64 (C,).

    Raises:
        InputError: it has none.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise InputError(f"model has a {type(norm).__name__} without running statistics, which cannot be folded.")
    wide = {name: value.detach().cpu().double() for name, value in norm.state_dict().items()}
    factor = (wide["weight"] if norm.affine else 1) / (wide["running_var"] + norm.eps).sqrt()
    return factor, (wide["bias"] if norm.affine else 0) - wide["running_mean"] * factor
