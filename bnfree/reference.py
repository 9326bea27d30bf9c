"""Reads the checkpoints of the public code: VITA-Group/BNN_NoBN, liuzechun/ReActNet and Ruichen0424/AB-BNN.

The networks are those of "BNN - BN = ?" (arXiv 2104.08215), ReActNet (Liu et al., ECCV 2020) and A&B BNN (CVPR 2024,
arXiv 2403.03739). Their files hold names and tensors only, so that alpha, beta, the stride of ReActNet-A's stem and
whether the weights are binary at all follow from the arguments here. Files are opened with `weights_only=True`: no code
in them runs.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.backbones.residual import ResidualUnit, StemKind
from bnfree.errors import InputError
from bnfree.state_dicts import read_state_dict

UNIT_18 = {
    "rsign.shift": "move0.bias",
    "convolution": "binary_conv",
    "batch_norm": "bn1",
    "projection": "downsample.1",
    "projection_norm": "downsample.2",
    "rprelu.shift_in": "move1.bias",
    "rprelu.slope": "prelu.weight",
    "rprelu.exponent": "prelu.L_alpha",
    "rprelu.shift_out": "move2.bias",
}
UNITS_A = (
    {
        "rsign.shift": "move11.bias",
        "convolution": "binary_3x3",
        "batch_norm": "bn1",
        "rprelu.shift_in": "move12.bias",
        "rprelu.slope": "prelu1.weight",
        "rprelu.exponent": "prelu1.L_alpha",
        "rprelu.shift_out": "move13.bias",
    },
    {
        "rsign.shift": "move21.bias",
        "convolution": "binary_pw",
        "batch_norm": "bn2",
        "rprelu.shift_in": "move22.bias",
        "rprelu.slope": "prelu2.weight",
        "rprelu.exponent": "prelu2.L_alpha",
        "rprelu.shift_out": "move23.bias",
    },
)
# Where ReActNet-A doubles its width, the public code has two layers for one of ours.
HALVES = {"binary_pw": ("binary_pw_down1", "binary_pw_down2"), "bn2": ("bn2_1", "bn2_2")}
MARK_18, MARK_A, MARK_AB = "layer1.0.move0.bias", "feature.0.conv1.weight", ".L_alpha"


def is_public_checkpoint(state_dict: Mapping[str, Any]) -> bool:
    """Whether the keys are those of a public network, so that `load_checkpoint` is the one to ask.

    Looks at names alone.

    Args:
        state_dict: state dict, or a checkpoint with one under `state_dict`, with or without the prefix `module.`.
    """
    inner = state_dict.get("state_dict", state_dict)
    names = [str(key).removeprefix("module.") for key in (inner if isinstance(inner, Mapping) else state_dict)]
    return any(name in (MARK_18, MARK_A) or name.endswith(MARK_AB) for name in names)


def load_checkpoint(
    path_or_dict: str | os.PathLike[str] | Mapping[str, Any],
    binary_weights: bool = True,
    stem: StemKind | None = None,
    alpha: float | None = None,
    binary_shortcut: bool | None = None,
) -> ReActNet18 | ReActNetA:
    """The network of a public checkpoint, built with `reference=True` and loaded strictly.

    Reads ReActNet-18 and ReActNet-A of BNN_NoBN, BN-free, with batch norm or with neither, and of liuzechun/ReActNet;
    and of A&B BNN, also its deeper ReActNet-34, with slopes that are powers of two and the estimator `sigmoid`. Its
    shortcuts are not scaled by beta at transitions: there beta is 1 here and the shift of RSign b / beta, which gives
    the same signs, and gradients whose window is beta as wide. Architecture, normalisation, width, classes, image
    channels and ReActNet-18's stem are found in the weights.

    The files that ReActNet's authors released hold weights of exactly -1 and +1 with the batch norm re-estimated for
    them. Their scale mean|w| is 1, so the network computes what the file means; but there are no latent weights behind
    the signs, and training from such a file starts with every weight a full unit away from its flip.

    Args:
        path_or_dict: checkpoint file, its content, or a bare state dict.
        binary_weights: True for step 2 (activations and weights binary), False for step 1; a file does not say.
        stem: stem of ReActNet-A, whose stride is not in the weights; None: `imagenet`, as published. For ReActNet-18 it
            may only confirm what the weights show.
        alpha: factor of the residual branch in BN-free networks; None: the published 0.2, of A&B BNN 0.25.
        binary_shortcut: whether the 1x1 shortcut convolutions of ReActNet-18 are binary as well in step 2: yes in
            BNN_NoBN, no in liuzechun/ReActNet. None: no when the file can only be the latter's (flattened `weights`, or
            weights of exactly -1 and +1), else yes. Latent weights with batch norm look alike in both: say False for
            your own run of liuzechun's code.

    Returns:
        The network on the CPU in training mode, like any fresh network; call `eval()` before using batch norm's stored
        statistics. The random generator is left as it was.

    Raises:
        InputError: unreadable or foreign file, unknown architecture, a key that is missing, unexpected or of another
            shape, or arguments that contradict the weights.

    Example:
        >>> network = load_checkpoint("model_best.pth.tar", binary_weights=True)  # doctest: +SKIP
        >>> network(torch.randn(2, 3, 32, 32)).shape  # doctest: +SKIP
        torch.Size([2, 10])
    """
    if not isinstance(path_or_dict, (str, os.PathLike, Mapping)):
        raise InputError(
            f"path_or_dict is of type {type(path_or_dict).__name__}; give a file or its content as a dict."
        )
    given = "path_or_dict" if isinstance(path_or_dict, Mapping) else f"path_or_dict={os.fspath(path_or_dict)!r}"
    weights, from_reactnet = _tensors(path_or_dict, given)
    of_ab = any(name.endswith(MARK_AB) for name in weights)
    if MARK_A not in weights and MARK_18 not in weights:
        raise InputError(f"{given} is neither a ReActNet-18 nor a ReActNet-A; it has no {MARK_18!r} and no {MARK_A!r}.")
    stem_key = MARK_A if MARK_A in weights else "conv1.weight"
    first, last = (_matrix(weights, key, dims, given) for key, dims in ((stem_key, 4), ("fc.weight", 2)))
    norm = "none"
    if any(key.endswith(".gain") for key in weights):
        norm = "bn_free"
    elif any(key.endswith(".running_mean") for key in weights):
        norm = "batch_norm"
    if binary_shortcut is None:
        binary_shortcut = not from_reactnet
    kind: Callable[..., ReActNet18 | ReActNetA] = ReActNetA
    if MARK_A not in weights:
        depths = _depths(weights) if of_ab else None
        kind = partial(ReActNet18, binary_shortcut=binary_shortcut, blocks_per_stage=depths)
    if of_ab:
        kind = partial(kind, slopes="power_of_two", estimator="sigmoid")
        alpha = 0.25 if alpha is None else alpha
    build = partial(
        kind,
        num_classes=last.shape[0],
        norm=norm,
        binary_weights=binary_weights,
        stem=(stem or "imagenet") if MARK_A in weights else _stem_18(first, stem, given),
        alpha=alpha,
        width=first.shape[0],
        reference=True,
        in_channels=first.shape[1],
    )
    # Building draws initial weights that are overwritten at once; the user's seed should not notice.
    with torch.random.fork_rng(devices=[]):
        network = build()
    network.load_state_dict(_translate(network, weights, given), strict=True)
    if of_ab:
        _unscale_shortcuts(network)
    return network


def _depths(weights: Mapping[str, Tensor]) -> list[int] | None:
    """Blocks of each stage of a ReActNet-18 or -34; None: not four stages, as will be said where names are compared."""
    found = [re.fullmatch(r"layer([1-4])\.(\d{1,3})\.move0\.bias", name) for name in weights]
    blocks = Counter(match[1] for match in found if match)
    return [blocks[stage] for stage in "1234"] if len(blocks) == 4 else None


@torch.no_grad()
def _unscale_shortcuts(network: nn.Module) -> None:
    """Takes beta out of transitions: sign(beta * x + b) is sign(x + b / beta), and the shortcut's input stays x."""
    for unit in network.modules():
        if isinstance(unit, ResidualUnit) and unit.pool is not None and unit.beta is not None:
            unit.rsign.shift.div_(unit.beta)
            unit.beta.fill_(1.0)


def _tensors(source: str | os.PathLike[str] | Mapping[str, Any], given: str) -> tuple[dict[str, Tensor], bool]:
    """The state dict in BNN_NoBN's names, and whether it can only come from liuzechun/ReActNet."""
    inner = read_state_dict(source, given)
    names = {key.removeprefix("module."): value for key, value in inner.items()}
    if any(name.endswith(MARK_AB) for name in names):
        names = {re.sub(r"^(layer\d\.\d+)\.conv1\.", r"\1.binary_conv.", name): v for name, v in names.items()}
    binary = [v for name, v in names.items() if ".binary_" in name and name.endswith((".weight", ".weights"))]
    already_binary = bool(binary) and all(bool((weight.abs() == 1).all()) for weight in binary)
    renamed = {name for name in names if name.endswith(".weights") and name[:-1] not in names}
    weights = {name[:-1] if name in renamed else name: value for name, value in names.items()}
    return weights, already_binary or bool(renamed)


def _matrix(weights: dict[str, Tensor], key: str, dims: int, given: str) -> Tensor:
    if key not in weights:
        raise InputError(f"{given} lacks {key!r}; give the whole network's checkpoint.")
    if weights[key].dim() != dims or 0 in weights[key].shape:
        raise InputError(f"{given} has {key!r} of shape {tuple(weights[key].shape)}; it must have {dims} dimensions.")
    return weights[key]


def _stem_18(weight: Tensor, stem: StemKind | None, given: str) -> StemKind:
    kinds: dict[int, StemKind] = {7: "imagenet", 3: "cifar"}
    size = weight.shape[-1]
    if size not in kinds:
        raise InputError(f"{given} has 'conv1.weight' of shape {tuple(weight.shape)}; a stem is 7x7 or 3x3.")
    if stem not in (None, kinds[size]):
        raise InputError(f"stem={stem!r} contradicts {given}, whose stem is {size}x{size}; leave stem out.")
    return kinds[size]


def _translate(network: ReActNet18 | ReActNetA, weights: dict[str, Tensor], given: str) -> dict[str, Tensor]:
    translated, used, missing = {}, set(), []
    for key, own in network.state_dict().items():
        if key.endswith(".beta"):
            # The public code keeps beta as a Python number; ours comes from the same rule.
            translated[key] = own
            continue
        name = _public_name(key, isinstance(network, ReActNetA))
        layer, leaf = name.rsplit(".", 1)
        prefix, _, last = layer.rpartition(".")
        wide = last in HALVES and name not in weights and f"{prefix}.{HALVES[last][0]}.weight" in weights
        parts = [f"{prefix}.{half}.{leaf}" for half in HALVES[last]] if wide else [name]
        absent = [part for part in parts if part not in weights]
        missing += absent
        used |= set(parts)
        if not absent:
            shape = (own.shape[0] // len(parts), *own.shape[1:]) if own.dim() else ()
            pieces = [_fitted(weights[part], torch.Size(shape), part, given) for part in parts]
            translated[key] = torch.cat(pieces) if own.dim() else pieces[0]
    for problem, names in (("lacks", missing), ("has the unexpected", sorted(set(weights) - used))):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise InputError(
                f"{given} looks like a {type(network).__name__} with norm={network.norm!r} but {problem} key "
                f"{names[0]!r}{more}; give an unchanged checkpoint of BNN_NoBN, ReActNet or A&B BNN."
            )
    return translated


def _fitted(weight: Tensor, shape: torch.Size, name: str, given: str) -> Tensor:
    # Shifts are stored as (1, C, 1, 1), and liuzechun's binary weights as one column.
    column = len(shape) == 4 and weight.shape == (shape.numel(), 1)
    if weight.shape != shape and not column and not (len(shape) == 1 and weight.shape == (1, *shape, 1, 1)):
        raise InputError(
            f"{given} has {name!r} of shape {tuple(weight.shape)}; its other weights ask for {tuple(shape)}."
        )
    return weight.reshape(shape)


def _public_name(key: str, large: bool) -> str:
    """The public name of one of our keys, in ReActNet-A if `large`, else in ReActNet-18."""
    area, *rest = key.split(".")
    if area == "classifier":
        return ".".join(["fc", *rest])
    prefix, names = "feature.0." if large else "", {"convolution": "conv1", "batch_norm": "bn1"}
    if area == "body":
        first, second, *rest = rest
        prefix = f"feature.{int(first) + 1}." if large else f"layer{int(first) + 1}.{second}."
        names = UNITS_A[int(second)] if large else UNIT_18
    whole = ".".join(rest)
    return prefix + (names[whole] if whole in names else ".".join([names[rest[0]], *rest[1:]]))
