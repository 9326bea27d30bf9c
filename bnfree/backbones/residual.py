"""What ReActNet18 and ReActNetA are assembled from: stem, residual unit, and the network around them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bnfree.activations import RPReLU
from bnfree.binarize import Estimator, RSign, get_estimator
from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError
from bnfree.lean.chain import run_chain
from bnfree.lean.fast import check_fast_modes

Norm = Literal["bn_free", "batch_norm", "none"]
StemKind = Literal["cifar", "imagenet"]


@dataclass(frozen=True)
class Variant:
    """How every unit of one network is built; see the networks for the meaning of the fields."""

    norm: Norm
    binary_weights: bool
    binary_shortcut: bool
    alpha: float
    reference: bool
    estimator: Estimator

    def __post_init__(self) -> None:
        if self.norm not in ("bn_free", "batch_norm", "none"):
            raise InputError(f"norm={self.norm!r} is not known; choose 'bn_free', 'batch_norm' or 'none'.")
        if not self.alpha > 0:
            raise InputError(f"alpha={self.alpha} must be greater than 0.")
        get_estimator(self.estimator)

    @property
    def bn_free(self) -> bool:
        """Standardised weights with alpha and beta, as against batch norm or nothing."""
        return self.norm == "bn_free"

    def convolution(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, binary: bool = True
    ) -> BinaryConv2d:
        """A convolution with padding that keeps the size at stride 1."""
        return BinaryConv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding=(kernel_size - 1) // 2,
            binary_weights=binary and self.binary_weights,
            standardize=self.bn_free,
            init="public_code" if self.reference else "kaiming",
        )

    def batch_norm(self, channels: int) -> nn.BatchNorm2d | None:
        """The batch norm of the twin network, None in the others."""
        return nn.BatchNorm2d(channels) if self.norm == "batch_norm" else None


@dataclass(frozen=True)
class BlockNames:
    """The blocks of a network's body by name: what elastic tickets stretch, and what they leave alone."""

    elastic: list[list[str]]
    """For each stage whose depth can differ its blocks in order, the first one (which changes the shape) included."""
    fixed: list[str]
    """All other blocks, in order."""


class Stem(nn.Module):
    """The real-valued first convolution, with batch norm in the twin and max pooling on request.

    Shape: (N, I, H, W) to (N, O, H / stride, W / stride), halved again by the pooling.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, pool: bool, variant: Variant
    ) -> None:
        super().__init__()
        self.convolution = variant.convolution(in_channels, out_channels, kernel_size, stride, binary=False)
        self.batch_norm = variant.batch_norm(out_channels)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if pool else None

    def forward(self, x: Tensor) -> Tensor:
        """Features of images `x` (N, I, H, W)."""
        x = self.convolution(x)
        if self.batch_norm is not None:
            x = self.batch_norm(x)
        return x if self.pool is None else self.pool(x)


class ResidualUnit(nn.Module):
    """One binary convolution around which a shortcut runs: RPReLU(shortcut + alpha * conv(RSign(beta * x))).

    In a transition (stride 2) the shortcut is the average-pooled beta * x, else x; where the channels double without a
    projection, the shortcut is repeated. `alpha` is 1 and `beta` None with batch norm or without normalisation.

    Source: ReActNet (Liu et al., 2020) and "BNN - BN = ?" (arXiv 2104.08215), figure 2. The two 1x1 convolutions that
    ReActNet-A concatenates where the width doubles are one convolution here: every rule acts per filter.

    Args:
        in_channels: input channels.
        out_channels: output channels.
        kernel_size: of the binary convolution.
        stride: 1 or 2.
        projection: 1x1 convolution on the shortcut (ReActNet-18's transitions).
        beta: 1 / standard deviation of the input, as predicted; calibration replaces it. Ignored unless BN-free.
        variant: how the network is built.

    Shape: (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride)). `beta` is a buffer of
    shape ().
    """

    beta: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        projection: bool,
        beta: float,
        variant: Variant,
    ) -> None:
        super().__init__()
        self.rsign = RSign(in_channels, variant.estimator)
        self.convolution = variant.convolution(in_channels, out_channels, kernel_size, stride)
        self.batch_norm = variant.batch_norm(out_channels)
        # In odd sizes the last row stays, as in the convolution; in even ones this is plain 2x2 pooling.
        self.pool = nn.AvgPool2d(2, 2, ceil_mode=True) if stride == 2 else None
        self.projection: BinaryConv2d | None = None
        self.projection_norm: nn.BatchNorm2d | None = None
        if projection:
            self.projection = variant.convolution(in_channels, out_channels, 1, binary=variant.binary_shortcut)
            self.projection_norm = variant.batch_norm(out_channels)
        self.repeats = 1 if projection else out_channels // in_channels
        self.rprelu = RPReLU(out_channels)
        self.alpha = variant.alpha if variant.bn_free else 1.0
        self.register_buffer("beta", torch.tensor(beta) if variant.bn_free else None)

    def forward(self, x: Tensor) -> Tensor:
        """The unit's output for trunk `x` (N, in_channels, H, W)."""
        branch = self.convolution(self.rsign(x, self.beta))
        if self.batch_norm is not None:
            branch = self.batch_norm(branch)
        return self.rprelu(torch.add(self.shortcut(x), branch, alpha=self.alpha))

    def shortcut(self, x: Tensor) -> Tensor:
        """What goes around the convolution."""
        shortcut = x if self.pool is None else self.pool(x if self.beta is None else x * self.beta)
        if self.projection is not None:
            shortcut = self.projection(shortcut)
        if self.projection_norm is not None:
            shortcut = self.projection_norm(shortcut)
        if self.repeats > 1:
            # As `repeat`, which would lose the channels-last format.
            shortcut = torch.cat([shortcut] * self.repeats, 1)
        return shortcut

    def extra_repr(self) -> str:
        """What `print` shows of the layer."""
        return f"alpha={self.alpha:g}" if self.beta is None else f"alpha={self.alpha:g}, beta={self.beta.item():.4g}"


class ReActNet(nn.Module):
    """Stem, body of residual units, global average pooling, linear classifier.

    A network of your own needs what is here: `num_classes`, `in_channels`, `norm`, a `classifier` module (left out of
    gradient clipping and binarisation), and a forward from (N, I, H, W) images to (N, num_classes) logits.
    """

    stem: Stem
    body: nn.Sequential
    classifier: nn.Linear

    def __init__(self, num_classes: int, in_channels: int, width: int, stem: StemKind, variant: Variant) -> None:
        super().__init__()
        for name, value in {"num_classes": num_classes, "in_channels": in_channels, "width": width}.items():
            if value < 1:
                raise InputError(f"{name}={value} must be at least 1.")
        if stem not in ("cifar", "imagenet"):
            raise InputError(f"stem={stem!r} is not known; choose 'cifar' or 'imagenet'.")
        self.num_classes, self.in_channels, self.variant = num_classes, in_channels, variant
        self._lean = True
        self._fast: tuple[str, ...] = ()

    @property
    def fast(self) -> tuple[str, ...]:
        """Fast modes of the lean path by name, see `bnfree.lean.fast`; may be set, to one name or several."""
        return self._fast

    @fast.setter
    def fast(self, fast: str | Iterable[str]) -> None:
        self._fast = check_fast_modes(fast)

    @property
    def lean(self) -> bool:
        """Whether to train lean, see the networks; setting it sets it for every part."""
        return self._lean

    @lean.setter
    def lean(self, lean: bool) -> None:
        self._lean = lean
        for module in self.modules():
            if isinstance(module, RSign | RPReLU | BinaryConv2d):
                module.lean = lean

    @property
    def norm(self) -> Norm:
        """`bn_free`, `batch_norm` or `none`."""
        return self.variant.norm

    @property
    def wants_calibration(self) -> bool:
        """Whether training should measure beta and shifts first: BN-free networks, unless they are the reference."""
        return self.variant.bn_free and not self.variant.reference

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, in_channels, H, W)."""
        x = self.stem(images)
        x = run_chain(self.body, x, ResidualUnit, self.fast) if self.lean else self.body(x)
        return self.classifier(x.mean((2, 3)))
