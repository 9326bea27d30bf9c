"""What ReActNet18 and ReActNetA are assembled from: stem, residual unit, and the network around them and a head."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bnfree.activations import RPReLU, Slopes, build_rprelu
from bnfree.backbones.features import FeatureInfo, find_stages
from bnfree.binarize import Estimator, RSign, get_estimator
from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError
from bnfree.heads import Head, build_head
from bnfree.lean.chain import run_chain
from bnfree.lean.fast import check_fast_modes
from bnfree.normalizers import Norm, get_normalizer, normalizer_name, scales_branches, standardizes_weights
from bnfree.weight_transforms import WeightTransform

StemKind = Literal["cifar", "imagenet"]


@dataclass(frozen=True)
class Variant:
    """How every part of one network is built; see the networks for the meaning of the fields.

    The factory of convolutions and of what stands behind them: a normaliser by name, dotted path or as a callable.
    """

    norm: Norm
    binary_weights: bool
    binary_shortcut: bool
    alpha: float
    reference: bool
    estimator: Estimator
    weight_estimator: Estimator | None = None
    weight_transform: WeightTransform | None = None
    slopes: Slopes = "learned"
    group_size: int | None = None

    def __post_init__(self) -> None:
        if self.group_size is not None:
            check_sizes(group_size=self.group_size)
        get_normalizer(self.norm)
        if not self.alpha > 0:
            raise InputError(f"alpha={self.alpha} must be greater than 0.")
        get_estimator(self.estimator)

    @property
    def scaled(self) -> bool:
        """Whether residual branches have alpha and beta, as in BN-free networks."""
        return scales_branches(self.norm)

    def convolution(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, binary: bool = True
    ) -> BinaryConv2d:
        """A convolution with padding that keeps the size at stride 1."""
        groups = 1
        if self.group_size is not None and binary and kernel_size == 3:
            groups, rest = divmod(in_channels, self.group_size)
            if rest or out_channels % groups:
                raise InputError(
                    f"group_size={self.group_size} must divide the {in_channels} channels of a 3x3 convolution into "
                    f"groups, as many as divide its {out_channels} filters."
                )
        return BinaryConv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding=(kernel_size - 1) // 2,
            groups=groups,
            binary_weights=binary and self.binary_weights,
            standardize=standardizes_weights(self.norm),
            init="public_code" if self.reference else "kaiming",
            # Stem and real shortcuts stay as they are in every published network.
            weight_estimator=self.weight_estimator if binary else None,
            weight_transform=self.weight_transform if binary else None,
        )

    def normalizer(self, channels: int) -> nn.Module | None:
        """What stands behind a convolution, None for nothing."""
        return get_normalizer(self.norm)(channels)


class Normalized(nn.Module):
    """A module with a normaliser behind its convolution.

    Batch norm has a name of its own, which all files of the twin networks use: `batch_norm` or `normalizer`, the other
    one and where nothing stands both are None.
    """

    batch_norm: nn.BatchNorm2d | None
    normalizer: nn.Module | None

    def set_normalizer(self, module: nn.Module | None) -> None:
        """Puts a module behind the convolution, or nothing."""
        self.batch_norm = module if isinstance(module, nn.BatchNorm2d) else None
        self.normalizer = None if isinstance(module, nn.BatchNorm2d) else module

    @property
    def after_convolution(self) -> nn.Module | None:
        """What stands behind the convolution."""
        return self.normalizer if self.batch_norm is None else self.batch_norm


@dataclass(frozen=True)
class BlockNames:
    """The blocks of a network's body by name: what elastic tickets stretch, and what they leave alone."""

    elastic: list[list[str]]
    """For each stage whose depth can differ its blocks in order, the first one (which changes the shape) included."""
    fixed: list[str]
    """All other blocks, in order."""


class Stem(Normalized):
    """The real-valued first convolution, with the network's normaliser, and max pooling on request.

    Shape: (N, I, H, W) to (N, O, H / stride, W / stride), halved again by the pooling.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, pool: bool, variant: Variant
    ) -> None:
        super().__init__()
        self.convolution = variant.convolution(in_channels, out_channels, kernel_size, stride, binary=False)
        self.set_normalizer(variant.normalizer(out_channels))
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if pool else None

    def forward(self, x: Tensor) -> Tensor:
        """Features of images `x` (N, I, H, W)."""
        x = self.convolution(x)
        if self.after_convolution is not None:
            x = self.after_convolution(x)
        return x if self.pool is None else self.pool(x)


class ResidualUnit(Normalized):
    """One binary convolution around which a shortcut runs: RPReLU(shortcut + alpha * conv(RSign(beta * x))).

    In a transition (stride 2) the shortcut is the average-pooled beta * x, else x; where the channels double without a
    projection, the shortcut is repeated. `alpha` is 1 and `beta` None unless the variant has both (`bn_free` has). A
    normaliser stands behind the convolution and behind the projection.

    Source: ReActNet (Liu et al., 2020) and "BNN - BN = ?" (arXiv 2104.08215), figure 2. The two 1x1 convolutions that
    ReActNet-A concatenates where the width doubles are one convolution here: every rule acts per filter.

    Args:
        in_channels: input channels.
        out_channels: output channels.
        kernel_size: of the binary convolution.
        stride: 1 or 2.
        projection: 1x1 convolution on the shortcut (ReActNet-18's transitions).
        beta: 1 / standard deviation of the input, as predicted; calibration replaces it. Ignored without alpha and
            beta.
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
        self.set_normalizer(variant.normalizer(out_channels))
        # In odd sizes the last row stays, as in the convolution; in even ones this is plain 2x2 pooling.
        self.pool = nn.AvgPool2d(2, 2, ceil_mode=True) if stride == 2 else None
        self.projection: BinaryConv2d | None = None
        self.projection_norm: nn.Module | None = None
        if projection:
            self.projection = variant.convolution(in_channels, out_channels, 1, binary=variant.binary_shortcut)
            self.projection_norm = variant.normalizer(out_channels)
        self.repeats = 1 if projection else out_channels // in_channels
        self.rprelu = build_rprelu(out_channels, variant.slopes)
        self.alpha = variant.alpha if variant.scaled else 1.0
        self.register_buffer("beta", torch.tensor(beta) if variant.scaled else None)

    @property
    def stride(self) -> int:
        """By what the unit divides height and width."""
        return self.convolution.stride

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.convolution.out_channels

    def forward(self, x: Tensor) -> Tensor:
        """The unit's output for trunk `x` (N, in_channels, H, W)."""
        branch = self.convolution(self.rsign(x, self.beta))
        if self.after_convolution is not None:
            branch = self.after_convolution(branch)
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
    """A network of parts: stem, body of residual units, global average pooling, head.

    A subclass builds its stem and body and hands them over. A network of another kind needs what training asks for:
    `num_classes`, `in_channels`, a `classifier` module (left out of gradient clipping and binarisation), and a forward
    from (N, I, H, W) images to (N, num_classes) logits.

    Args:
        num_classes: number of classes.
        variant: how the parts were built.
        stem: from images to the body's input.
        body: residual units, also nested in `nn.Sequential`s and among other modules.
        head: name, dotted path or callable, see `bnfree.heads`.
        features_only: give the feature map of every stage, and have no head.
        lean: see the networks.
        fast: see the networks.
    """

    stem: Stem
    body: nn.Sequential

    def __init__(
        self,
        num_classes: int,
        variant: Variant,
        stem: Stem,
        body: nn.Sequential,
        head: Head = "linear",
        features_only: bool = False,
        lean: bool = True,
        fast: Iterable[str] | None = None,
    ) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes)
        self.num_classes, self.in_channels, self.variant = num_classes, stem.convolution.in_channels, variant
        self.features_only = features_only
        self.stem, self.body = stem, body
        features = self.feature_info.channels()[-1]
        self.classifier: nn.Module | None = None if features_only else build_head(head, features, num_classes)
        self.lean, self.fast = lean, fast or ()

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels and reduction of the feature map of every stage."""
        reduction = self.stem.convolution.stride * (1 if self.stem.pool is None else 2)
        return find_stages(self.body, self.stem.convolution.out_channels, reduction, ResidualUnit)

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
    def norm(self) -> str:
        """`bn_free`, `batch_norm`, `none`, or the name or dotted path of another normaliser."""
        return normalizer_name(self.variant.norm)

    @property
    def wants_calibration(self) -> bool:
        """Whether training should measure beta and shifts first: BN-free networks, unless they are the reference."""
        return self.variant.scaled and not self.variant.reference

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """Logits (N, num_classes) of images (N, in_channels, H, W); with `features_only` the stages' feature maps."""
        if self.classifier is None:
            return self.stage_features(images)
        return self.classifier(self.features(images).mean((2, 3)))

    def features(self, images: Tensor) -> Tensor:
        """The last feature map (N, C, H', W') of images (N, in_channels, H, W)."""
        return self._run(self.body, self.stem(images))

    def stage_features(self, images: Tensor) -> list[Tensor]:
        """The feature map of every stage, as `feature_info` describes them."""
        x, maps = self.stem(images), []
        for stage in self.feature_info:
            x = self._run(self.body[stage.start : stage.stop], x)
            maps.append(x)
        return maps

    def until_stage(self, images: Tensor, stage: int) -> Tensor:
        """The feature map (N, C, H', W') behind the stage of that number, from 0, of images (N, in_channels, H, W)."""
        return self._run(self.body[: self.feature_info[stage].stop], self.stem(images))

    def from_stage(self, x: Tensor, stage: int) -> Tensor:
        """Logits (N, num_classes) of the feature map behind a stage: what `forward` does after `until_stage`."""
        features = self._run(self.body[self.feature_info[stage].stop :], x)
        return features.mean((2, 3)) if self.classifier is None else self.classifier(features.mean((2, 3)))

    def from_features(self, images: Tensor, changes: Mapping[int, Callable[[Tensor], Tensor]]) -> Tensor:
        """Logits of images (N, in_channels, H, W) with the feature maps behind some stages changed on their way."""
        x = self.stem(images)
        for number, stage in enumerate(self.feature_info):
            x = self._run(self.body[stage.start : stage.stop], x)
            x = changes[number](x) if number in changes else x
        return self.from_stage(x, len(self.feature_info) - 1)

    def _run(self, body: nn.Sequential, x: Tensor) -> Tensor:
        return run_chain(body, x, ResidualUnit, self.fast) if self.lean else body(x)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if self.classifier is None:
            # Weights of a whole network load strictly into its body.
            for name in [name for name in state_dict if name.startswith(f"{prefix}classifier.")]:
                del state_dict[name]
        super()._load_from_state_dict(state_dict, prefix, *args)


def check_sizes(**sizes: int) -> None:
    """Refuses numbers below 1.

    Raises:
        InputError: it names the first of them.
    """
    for name, value in sizes.items():
        if value < 1:
            raise InputError(f"{name}={value} must be at least 1.")


def check_stem(stem: str) -> None:
    """Refuses other stems than `cifar` and `imagenet`.

    Raises:
        InputError: another one.
    """
    if stem not in ("cifar", "imagenet"):
        raise InputError(f"stem={stem!r} is not known; choose 'cifar' or 'imagenet'.")
