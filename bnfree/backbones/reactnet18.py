"""ReActNet-18: ResNet-18 with one binary convolution in each residual unit.

Sources: Bi-Real Net (ECCV 2018) for the layout, ReActNet (ECCV 2020, github.com/liuzechun/ReActNet), "BNN - BN = ?"
(arXiv 2104.08215, github.com/VITA-Group/BNN_NoBN) for the BN-free form.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

from bnfree.activations import Slopes
from bnfree.backbones.gated_unit import GatedUnit
from bnfree.backbones.residual import (
    BlockNames,
    ReActNet,
    ResidualUnit,
    Stem,
    StemKind,
    Variant,
    check_sizes,
    check_stem,
)
from bnfree.backbones.variance import normalizer_free_betas, public_betas_reactnet18
from bnfree.binarize import Estimator
from bnfree.errors import InputError
from bnfree.heads import Head
from bnfree.local_attention import LocalAttention
from bnfree.normalizers import Norm
from bnfree.weight_transforms import WeightTransform

BLOCKS_PER_STAGE = [4, 4, 4, 4]


class ReActNet18(ReActNet):
    """ReActNet-18 for images of any size.

    Args:
        num_classes: number of classes.
        norm: `bn_free` (standardised weights, alpha and beta), `batch_norm` (the twin), `none` (neither), another name
            of `bnfree.normalizers`, or the dotted path of your own normaliser.
        binary_weights: True: activations and weights are binary (step 2); False: activations only (step 1). Both have
            the same state dict.
        stem: `cifar` (3x3, stride 1, for small images) or `imagenet` (7x7, stride 2, max pooling).
        alpha: factor of the residual branch in BN-free networks; None: 0.5, or the published 0.2 with `reference`.
        width: channels of the first stage; the later ones have 2, 4 and 8 times as many.
        reference: reproduce the public BNN_NoBN code: its beta rule, all-positive initialisation of binary weights,
            binary shortcut convolutions, alpha 0.2, no calibration.
        in_channels: channels of the images.
        estimator: gradient estimator of the binary activations, see `bnfree.binarize.sign`: a name, or the dotted path
            of your own.
        binary_shortcut: binarise the 1x1 convolutions of the shortcuts too when the weights are binary; None: only with
            `reference`. ReActNet's authors keep them real, the public BN-free code does not.
        blocks_per_stage: residual units of each of the four stages, four numbers of at least 1; null: 4 in each.
        lean: compute the same with less: each residual unit keeps one tensor for the backward pass and recomputes the
            rest, see `bnfree.lean`; False: the plain composition of modules. Also an attribute, to be set at any time.
        fast: fast modes of the lean path, see `bnfree.lean.fast`: `int8_forward` (CPU, 8 bits) and `half_forward` (GPU,
            float16) run binary convolutions with the same results bit for bit; `bf16_backward` computes gradients of
            binary convolutions in bfloat16, within 0.3 %; `half_saved` keeps half the bytes for the backward pass,
            within 0.03 %. Also an attribute.
        head: from pooled features to logits: `linear`, `cosine`, `equiangular`, `grassmann`, or the dotted path of your
            own, see `bnfree.heads`.
        features_only: give the feature maps of all stages in place of logits, and have no head; `feature_info` has
            their channels and reductions. Weights of a whole network load strictly.
        weight_estimator: gradient estimator of binary weights, by the same names; null: the identity through
            clamp(w, -1, 1), as in ReActNet.
        weight_transform: from latent weights of binary convolutions to weights, such as `compander`, see
            `bnfree.weight_transforms`.
        slopes: slopes of the activations: `learned`, a real number a channel, or `power_of_two`, which need no
            multiplication, as in A&B BNN; see `bnfree.activations.PowerOfTwoRPReLU`.
        group_size: input channels of a group of the 3x3 binary convolutions, the same in all of them: operations and
            weights shrink in proportion (E2GC, Nguyen et al.); null: all, no groups. Weights of another group size do
            not load.
        attention: local attention behind each stage (`bnfree.local_attention`), 1 everywhere at the start.
        gating: channels of the convolutions are on or off image by image (`bnfree.backbones.gated_unit`), all on at the
            start; trained by `GatedClassifier`.

    Raises:
        InputError: an argument out of range or an unknown choice.

    Example:
        >>> import torch
        >>> network = ReActNet18(num_classes=100, stem="imagenet", width=8)
        >>> network(torch.randn(2, 3, 64, 64)).shape
        torch.Size([2, 100])
    """

    def __init__(
        self,
        num_classes: int = 10,
        norm: Norm = "bn_free",
        binary_weights: bool = True,
        stem: StemKind = "cifar",
        alpha: float | None = None,
        width: int = 64,
        reference: bool = False,
        in_channels: int = 3,
        estimator: Estimator = "approx",
        binary_shortcut: bool | None = None,
        blocks_per_stage: list[int] | None = None,
        lean: bool = True,
        fast: list[str] | None = None,
        head: Head = "linear",
        features_only: bool = False,
        weight_estimator: Estimator | None = None,
        weight_transform: WeightTransform | None = None,
        slopes: Slopes = "learned",
        group_size: int | None = None,
        attention: bool = False,
        gating: bool = False,
    ) -> None:
        check_sizes(num_classes=num_classes, in_channels=in_channels, width=width)
        check_stem(stem)
        depths = list(BLOCKS_PER_STAGE if blocks_per_stage is None else blocks_per_stage)
        if len(depths) != len(BLOCKS_PER_STAGE) or any(type(blocks) is not int or blocks < 1 for blocks in depths):
            raise InputError(
                f"blocks_per_stage={blocks_per_stage} must be four whole numbers of at least 1, such as "
                f"{BLOCKS_PER_STAGE}."
            )
        if alpha is None:
            alpha = 0.2 if reference else 0.5
        if binary_shortcut is None:
            binary_shortcut = reference
        variant = Variant(
            norm,
            binary_weights,
            binary_shortcut,
            alpha,
            reference,
            estimator,
            weight_estimator,
            weight_transform,
            slopes,
            group_size,
        )
        imagenet = stem == "imagenet"
        first = Stem(in_channels, width, 7 if imagenet else 3, 2 if imagenet else 1, imagenet, variant)
        if reference:
            betas = public_betas_reactnet18(depths, alpha)
        else:
            first_of_stage = [s > 0 and b == 0 for s, blocks in enumerate(depths) for b in range(blocks)]
            betas = normalizer_free_betas(first_of_stage, alpha)
        remaining = iter(betas)
        stages, channels = [], width
        for stage, blocks in enumerate(depths):
            units = []
            for block in range(blocks):
                transition = stage > 0 and block == 0
                out_channels = width * 2**stage
                stride = 2 if transition else 1
                kind = GatedUnit if gating else ResidualUnit
                unit = kind(channels, out_channels, 3, stride, transition, next(remaining), variant)
                units.append(unit)
                channels = out_channels
            stages.append(nn.Sequential(*units))
            if attention:
                stages[-1].add_module("attention", LocalAttention(channels))
        super().__init__(num_classes, variant, first, nn.Sequential(*stages), head, features_only, lean, fast)
        self.blocks_per_stage = depths

    @property
    def depth(self) -> dict[str, list[int]]:
        """The argument that decides the depth."""
        return {"blocks_per_stage": self.blocks_per_stage}

    @staticmethod
    def block_names(names: Iterable[str]) -> BlockNames:
        """The blocks in the names of a state dict of a network of any depth; every stage is elastic."""
        found = (re.match(r"body\.(\d+)\.(\d+)\.", name) for name in names)
        pairs = sorted({(int(match[1]), int(match[2])) for match in found if match})
        return BlockNames([[f"body.{s}.{b}" for s, b in pairs if s == stage] for stage in sorted(dict(pairs))], [])
