"""NF-ResNet-18: the real-valued residual network without batch normalisation.

Sources: Brock et al., "Characterizing signal propagation to close the performance gap in unnormalized ResNets" (ICLR
2021, arXiv 2101.08692) for scaled weight standardisation, alpha, beta and the scaled ReLU; Brock et al., ICML 2021
(arXiv 2102.06171) for the recipe with adaptive gradient clipping; De and Smith (arXiv 2002.10444) for SkipInit; He et
al. (arXiv 1603.05027) for pre-activation and the layout of ResNet-18.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bnfree.backbones.features import FeatureInfo, find_stages
from bnfree.backbones.residual import StemKind, check_sizes, check_stem
from bnfree.backbones.variance import normalizer_free_betas
from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError
from bnfree.heads import Head, build_head
from bnfree.normalizers import Norm, get_normalizer, normalizer_name, scales_branches, standardizes_weights

BLOCKS_PER_STAGE = 2
# 1 / standard deviation of relu(x) for a standard normal x, as the paper has it; the 1.71396 of the public code is an
# estimate of it.
RELU_GAMMA = math.sqrt(2 / (1 - 1 / math.pi))


class ScaledReLU(nn.Module):
    """gamma * relu(x + shift), of variance 1 for a standard normal x, with a learned shift per channel, initially 0.

    The shift stands for the bias that the sources give to each convolution, before an activation it is the same.

    Shape: (N, C, H, W) to the same; `shift` (C,).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Activations of `x` (N, C, H, W)."""
        return torch.relu(x + self.shift.view(1, -1, 1, 1)) * RELU_GAMMA


class NormalizerFreeBlock(nn.Module):
    """A pre-activation block: shortcut + alpha * skip_gain * f(beta * x).

    The branch f is scaled ReLU, 3x3 convolution, scaled ReLU, 3x3 convolution, its weights standardised. In a
    transition the shortcut is a 1x1 convolution of stride 2 on the first activation, so that its variance is 1 again.
    With another normaliser than `bn_free` it stands in front of both activations, as batch norm does in pre-activation
    ResNets, and `skip_gain`, alpha and beta are 1.

    Args:
        in_channels: input channels.
        out_channels: output channels; with stride 1 the same number.
        stride: 1 or 2.
        beta: 1 / standard deviation of the input, as predicted.
        alpha: standard deviation that the branch adds.
        norm: see `bnfree.normalizers`.
        inner_channels: channels C between the two convolutions of the branch, which are then plain, without
            standardisation, gain and a normaliser between them; None: `out_channels`, and as `norm` has them.

    Shape: (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride)). `skip_gain` has shape () and
    starts at 0 (SkipInit), where the block is its shortcut.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        beta: float,
        alpha: float,
        norm: Norm = "bn_free",
        inner_channels: int | None = None,
    ) -> None:
        super().__init__()
        normalizer, scaled = get_normalizer(norm), scales_branches(norm)
        inner, plain = (out_channels, False) if inner_channels is None else (inner_channels, True)
        self.stride, self.out_channels = stride, out_channels
        self.alpha, self.beta = (alpha, beta) if scaled else (1.0, 1.0)
        self.normalizer1 = normalizer(in_channels)
        self.activation1 = ScaledReLU(in_channels)
        self.convolution1 = _convolution(in_channels, inner, 3, stride, norm, plain)
        self.normalizer2 = None if plain else normalizer(inner)
        self.activation2 = ScaledReLU(inner)
        self.convolution2 = _convolution(inner, out_channels, 3, 1, norm, plain)
        self.projection = _convolution(in_channels, out_channels, 1, stride, norm) if stride > 1 else None
        self.skip_gain = nn.Parameter(torch.zeros(())) if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        """The block's output for trunk `x` (N, in_channels, H, W)."""
        active = self.activation1(self.beta * _normalized(x, self.normalizer1))
        hidden = _normalized(self.convolution1(active), self.normalizer2)
        branch = self.convolution2(self.activation2(hidden))
        shortcut = x if self.projection is None else self.projection(active)
        return shortcut + (branch if self.skip_gain is None else self.alpha * self.skip_gain * branch)

    def extra_repr(self) -> str:
        """What `print` shows of the layer."""
        return f"alpha={self.alpha:g}, beta={self.beta:.4g}"


class NFResNet18(nn.Module):
    """NF-ResNet-18 for images of any size, real-valued: a teacher without batch normalisation.

    Its weights are standardised as in the binary networks, alpha and beta follow the analytic rule (which holds here,
    so there is nothing to calibrate), and no output depends on the batch. Meant to be trained with
    `AdaptiveGradientClipping`.

    Args:
        num_classes: number of classes.
        stem: `cifar` (3x3, stride 1, for small images) or `imagenet` (7x7, stride 2, max pooling).
        alpha: standard deviation that each block adds to the trunk; 0.2 as published.
        width: channels of the first stage; the later ones have 2, 4 and 8 times as many.
        in_channels: channels of the images.
        norm: `bn_free` (NF-ResNet-18), `batch_norm` (the pre-activation ResNet-18), `none`, another name of
            `bnfree.normalizers`, or the dotted path of your own normaliser.
        head: from pooled features to logits: `linear`, `cosine`, `equiangular`, `grassmann`, or the dotted path of your
            own, see `bnfree.heads`.
        inner_channels: channels between the two convolutions of each of the eight blocks, which are then plain: what
            `bnfree compress` writes into its checkpoints. None: as many as the block's output has, standardised.

    Raises:
        InputError: an argument out of range or an unknown choice.
    """

    def __init__(
        self,
        num_classes: int = 10,
        stem: StemKind = "cifar",
        alpha: float = 0.2,
        width: int = 64,
        in_channels: int = 3,
        norm: Norm = "bn_free",
        head: Head = "linear",
        inner_channels: list[int] | None = None,
    ) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes, width=width, in_channels=in_channels)
        check_stem(stem)
        if not alpha > 0:
            raise InputError(f"alpha={alpha} must be greater than 0.")
        self.num_classes, self.in_channels = num_classes, in_channels
        self.norm = normalizer_name(norm)
        self.stem = nn.Sequential(_convolution(in_channels, width, 3, 1, norm))
        if stem == "imagenet":
            pool = nn.MaxPool2d(3, stride=2, padding=1)
            self.stem = nn.Sequential(_convolution(in_channels, width, 7, 2, norm), pool)
        transitions = [stage > 0 and block == 0 for stage in range(4) for block in range(BLOCKS_PER_STAGE)]
        blocks, channels, inner = [], width, _inner_channels(inner_channels, len(transitions))
        betas = normalizer_free_betas(transitions, alpha)
        for transition, beta, between in zip(transitions, betas, inner, strict=True):
            out_channels, stride = (2 * channels, 2) if transition else (channels, 1)
            blocks.append(NormalizerFreeBlock(channels, out_channels, stride, beta, alpha, norm, between))
            channels = out_channels
        self.body = nn.Sequential(*blocks)
        self.normalizer = get_normalizer(norm)(channels)
        self.activation = ScaledReLU(channels)
        self.classifier = build_head(head, channels, num_classes)

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels and reduction of every stage of the body."""
        width, reduction = self.activation.shift.numel() // 8, 4 if len(self.stem) > 1 else 1
        return find_stages(self.body, width, reduction, NormalizerFreeBlock)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, in_channels, H, W)."""
        return self.classifier(self.features(images).mean((2, 3)))

    def features(self, images: Tensor) -> Tensor:
        """The last feature map (N, C, H', W') of images (N, in_channels, H, W), after the last activation."""
        return self.activation(_normalized(self.body(self.stem(images)), self.normalizer))


def _normalized(x: Tensor, normalizer: nn.Module | None) -> Tensor:
    return x if normalizer is None else normalizer(x)


def _inner_channels(given: list[int] | None, blocks: int) -> Sequence[int | None]:
    if given is None:
        return [None] * blocks
    if len(given) != blocks or not all(isinstance(count, int) and count > 0 for count in given):
        raise InputError(f"inner_channels={given} must be {blocks} whole numbers of at least 1, one for each block.")
    return given


def _convolution(
    in_channels: int, out_channels: int, kernel_size: int, stride: int, norm: Norm, plain: bool = False
) -> BinaryConv2d:
    padding, standardize = (kernel_size - 1) // 2, standardizes_weights(norm) and not plain
    return BinaryConv2d(
        in_channels, out_channels, kernel_size, stride, padding, binary_weights=False, standardize=standardize
    )
