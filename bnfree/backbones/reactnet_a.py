"""ReActNet-A: MobileNet-V1's layout, each block a binary 3x3 unit and a binary 1x1 unit.

Sources: ReActNet (ECCV 2020, github.com/liuzechun/ReActNet), "BNN - BN = ?" (arXiv 2104.08215,
github.com/VITA-Group/BNN_NoBN) for the BN-free form.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

from bnfree.activations import Slopes
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
from bnfree.backbones.variance import normalizer_free_betas, public_betas_reactnet_a
from bnfree.binarize import Estimator
from bnfree.errors import InputError
from bnfree.heads import Head
from bnfree.normalizers import Norm
from bnfree.weight_transforms import WeightTransform

# Output channels of each block as a multiple of the stem's, and its stride.
BLOCKS = [(2, 1), (4, 2), (4, 1), (8, 2), (8, 1), (16, 2), *[(16, 1)] * 5, (32, 2), (32, 1)]
# How many of them come before the equal ones, and after.
BEFORE, AFTER = 6, 2


class ReActNetA(ReActNet):
    """ReActNet-A for images of any size.

    Args:
        num_classes: number of classes.
        norm: `bn_free` (standardised weights, alpha and beta), `batch_norm` (the twin), `none` (neither), another name
            of `bnfree.normalizers`, or the dotted path of your own normaliser.
        binary_weights: True: activations and weights are binary (step 2); False: activations only (step 1). Both have
            the same state dict.
        stem: stride of the 3x3 stem: `cifar` 1, for small images; `imagenet` 2.
        alpha: factor of the residual branch in BN-free networks; None: 0.5, or the published 0.2 with `reference`.
        width: channels of the stem; the last blocks have 32 times as many.
        reference: reproduce the public BNN_NoBN code: its beta rule, all-positive initialisation of binary weights,
            alpha 0.2, no calibration.
        in_channels: channels of the images.
        estimator: gradient estimator of the binary activations, see `bnfree.binarize.sign`: a name, or the dotted path
            of your own.
        repeated_blocks: number of equal blocks in the stage that is 16 times as wide as the stem (512 channels as
            published), at least 1; 5 as published.
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

    Raises:
        InputError: an argument out of range or an unknown choice.

    Example:
        >>> import torch
        >>> network = ReActNetA(num_classes=100, stem="cifar", width=8)
        >>> network(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 100])
    """

    def __init__(
        self,
        num_classes: int = 1000,
        norm: Norm = "bn_free",
        binary_weights: bool = True,
        stem: StemKind = "imagenet",
        alpha: float | None = None,
        width: int = 32,
        reference: bool = False,
        in_channels: int = 3,
        estimator: Estimator = "approx",
        repeated_blocks: int = 5,
        lean: bool = True,
        fast: list[str] | None = None,
        head: Head = "linear",
        features_only: bool = False,
        weight_estimator: Estimator | None = None,
        weight_transform: WeightTransform | None = None,
        slopes: Slopes = "learned",
        group_size: int | None = None,
    ) -> None:
        check_sizes(num_classes=num_classes, in_channels=in_channels, width=width)
        check_stem(stem)
        if repeated_blocks < 1:
            raise InputError(f"repeated_blocks={repeated_blocks} must be at least 1.")
        if alpha is None:
            alpha = 0.2 if reference else 0.5
        variant = Variant(
            norm,
            binary_weights,
            False,
            alpha,
            reference,
            estimator,
            weight_estimator,
            weight_transform,
            slopes,
            group_size,
        )
        layout = [*BLOCKS[:BEFORE], *[BLOCKS[BEFORE]] * repeated_blocks, *BLOCKS[-AFTER:]]
        first = Stem(in_channels, width, 3, 2 if stem == "imagenet" else 1, False, variant)
        if reference:
            betas = public_betas_reactnet_a([stride == 2 for _, stride in layout], alpha)
        else:
            betas = normalizer_free_betas([t for _, stride in layout for t in (stride == 2, False)], alpha)
        blocks, channels = [], width
        for (multiple, stride), beta_3x3, beta_1x1 in zip(layout, betas[::2], betas[1::2], strict=True):
            blocks.append(
                nn.Sequential(
                    ResidualUnit(channels, channels, 3, stride, False, beta_3x3, variant),
                    ResidualUnit(channels, width * multiple, 1, 1, False, beta_1x1, variant),
                )
            )
            channels = width * multiple
        super().__init__(num_classes, variant, first, nn.Sequential(*blocks), head, features_only, lean, fast)
        self.repeated_blocks = repeated_blocks

    @property
    def depth(self) -> dict[str, int]:
        """The argument that decides the depth."""
        return {"repeated_blocks": self.repeated_blocks}

    @staticmethod
    def block_names(names: Iterable[str]) -> BlockNames:
        """The blocks in the names of a state dict of a network of any depth; one stage is elastic.

        Its first block is the one that halves the resolution, the others are the equal ones.
        """
        numbers = sorted({int(m[1]) for m in (re.match(r"body\.(\d+)\.", name) for name in names) if m})
        blocks = [f"body.{number}" for number in numbers]
        return BlockNames([blocks[BEFORE - 1 : -AFTER]], blocks[: BEFORE - 1] + blocks[-AFTER:])
