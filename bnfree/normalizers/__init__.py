"""What stands behind each convolution of a network, by name: batch norm, another normalisation, or nothing.

A normaliser is a callable from a number of channels to a module for (N, channels, H, W), or to None where nothing
stands; a class of modules whose constructor takes the channels is one. Attributes of the callable say what else it
changes in a network, see `declare`. What the module itself may say:

    folded()           factor and shift, float64 (C,) each, in evaluation mode: packing folds it into its neighbours.
                       Without, the network cannot be packed, since a threshold cannot depend on the image
    per_image = True   it computes statistics of each image when it runs, which `bnfree.costs` does not count and says

A built-in one is a file here and a line in `bnfree.plugins.BUILT_IN`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bnfree.errors import InputError
from bnfree.plugins import check_call, name_of, resolve

KIND = "normalizer"
Norm = str | Callable[[int], nn.Module | None]
"""A name, a dotted path, or the callable itself."""

Normalizer = TypeVar("Normalizer", bound=Callable[[int], nn.Module | None])
# PyTorch's own; nn.RMSNorm is for channels that come last.
PER_IMAGE = (nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)


def declare(*, standardize_weights: bool = False, scale_branches: bool = False) -> Callable[[Normalizer], Normalizer]:
    """Decorator that says what a normaliser changes in a network besides what it puts behind each convolution.

    Args:
        standardize_weights: latent weights are standardised and have a gain (scaled weight standardisation).
        scale_branches: residual branches are multiplied by alpha and their inputs by beta, which calibration measures.
    """

    def declared(normalizer: Normalizer) -> Normalizer:
        normalizer.standardize_weights = standardize_weights  # type: ignore[attr-defined]
        normalizer.scale_branches = scale_branches  # type: ignore[attr-defined]
        return normalizer

    return declared


def get_normalizer(norm: Norm) -> Callable[[int], nn.Module | None]:
    """The callable that a name or a dotted path stands for.

    Raises:
        InputError: no such normaliser, or something that cannot be called with a number of channels.
    """
    found = resolve(KIND, norm, "norm")
    if not callable(found):
        raise InputError(f"norm={norm!r} is no normaliser; give a callable from channels to a module.")
    check_call(found, f"norm={norm!r}", "norm(channels)", 1)
    return found


def standardizes_weights(norm: Norm) -> bool:
    """Whether it goes with standardised weights, see `declare`."""
    return bool(getattr(get_normalizer(norm), "standardize_weights", False))


def scales_branches(norm: Norm) -> bool:
    """Whether it goes with alpha and beta, see `declare`."""
    return bool(getattr(get_normalizer(norm), "scale_branches", False))


def normalizer_name(norm: Norm) -> str:
    """The name or the dotted path."""
    return norm if isinstance(norm, str) else name_of(KIND, norm)


def is_per_image(module: nn.Module) -> bool:
    """Whether a module computes statistics of each image when it runs."""
    return isinstance(module, PER_IMAGE) or bool(getattr(module, "per_image", False))


def refuse_single_values(x: Tensor, name: str, per_image: bool) -> None:
    """Refuses feature maps whose statistics would be of one value, which takes all but the shift from them.

    Args:
        x: (N, C, H, W).
        name: of the normaliser, for the message.
        per_image: whether statistics are of each image, or of the batch.

    Raises:
        InputError: one position, and if it is not per image one image.
    """
    if x.shape[2] * x.shape[3] * (1 if per_image else x.shape[0]) == 1:
        remedy = "take larger images" if per_image else "take larger images or batches"
        raise InputError(
            f"norm={name!r} meets feature maps of {x.shape[2]}x{x.shape[3]} for {x.shape[0]} image(s), and statistics "
            f"of one value are the value itself; {remedy}, or another norm."
        )


def fold(module: nn.Module | None, channels: int) -> tuple[Tensor, Tensor]:
    """Factor and shift of a normaliser in evaluation mode, float64 (C,); 1 and 0 where nothing stands.

    Raises:
        InputError: a module that has none, since it depends on the image.
    """
    if module is None:
        return torch.ones(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    if isinstance(module, nn.BatchNorm2d):
        from bnfree.normalizers.batch_norm import fold_batch_norm

        return fold_batch_norm(module)
    folded: Any = getattr(module, "folded", None)
    if folded is None:
        why = "whose result depends on the image" if is_per_image(module) else "which has no method folded()"
        raise InputError(
            f"model has a {type(module).__name__}, {why}, so that it cannot be folded into thresholds; pack a network "
            "whose norm is 'bn_free', 'batch_norm' or 'none'."
        )
    factor, shift = (torch.as_tensor(value).detach().cpu().double() for value in folded())
    if factor.shape != (channels,) or shift.shape != (channels,):
        raise InputError(
            f"{type(module).__name__}.folded() gives shapes {tuple(factor.shape)} and {tuple(shift.shape)}; it must "
            f"give ({channels},) twice."
        )
    return factor, shift
