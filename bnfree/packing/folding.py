"""Trained network -> constants and bits: standardisation, gain, alpha, beta and normaliser folded away.

What happens to each factor of RPReLU(shortcut + alpha * norm(gain * mean|w_hat| * sums)), where the sums are those of
conv(sign(beta * x + shift), sign(w_hat)):

    sign of gain (and of batch norm's weight)   flips the signs of the filter
    alpha, |gain|, mean|w_hat|, batch norm       one scale a filter
    batch norm's shift                           first shift of the RPReLU
    beta, shift of RSign                         one threshold a channel
    beta in front of a transition's shortcut     weight or scale of the projection, else one number a unit

Constants are float32; products of them are taken in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from bnfree.backbones.residual import ReActNet, ResidualUnit, Stem
from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError
from bnfree.heads import fold_head
from bnfree.normalizers import fold as fold_normalizer
from bnfree.packing.bits import TernaryWeight
from bnfree.packing.layers import PackedClassifier, PackedLayers, PackedStem, PackedUnit, tensors_of
from bnfree.packing.real_weights import RealPrecision, RealWeight
from bnfree.packing.thresholds import find_thresholds
from bnfree.state_dicts import uncompiled


@torch.no_grad()
def fold(
    model: nn.Module, classifier_precision: RealPrecision = "float16", convolution_precision: RealPrecision = "float32"
) -> PackedLayers:
    """The constants and bits of a trained network.

    Args:
        model: a network with binary weights made of a `Stem`, `ResidualUnit`s and a linear classifier, such as
            `ReActNet18` and `ReActNetA`, dense or pruned, with a `norm` that does not depend on the image and a `head`
            that is linear. It is not changed. Batch norm is folded with its running statistics, as in evaluation mode.
        classifier_precision: how the classifier is stored, see `RealWeight.round`. Shifts, slopes and scales stay in
            float32.
        convolution_precision: how stem and real shortcuts are stored.

    Raises:
        InputError: another kind of network, real weights where they should be binary (step 1), or constants that are
            not finite.
    """
    architecture, stem, units = fold_body(model, convolution_precision, with_head=True)
    classifier = _fold_classifier(cast(nn.Module, uncompiled(model).classifier), classifier_precision)
    layers = PackedLayers(architecture, stem, units, classifier)
    # Products of finite numbers can leave the range of float32.
    _check_finite(tensors_of(layers))
    return layers


@torch.no_grad()
def fold_body(
    model: nn.Module, precision: RealPrecision = "float32", with_head: bool = False
) -> tuple[str, PackedStem, tuple[PackedUnit, ...]]:
    """Name of the class, stem and units of a trained network.

    Args:
        model: see `fold`; it may also have `features_only=True`.
        precision: how stem and real shortcuts are stored.
        with_head: whether the network must have a head.

    Raises:
        InputError: as of `fold`.
    """
    model = _check_kind(uncompiled(model), with_head)
    units = _units_of(model)
    _check_finite(model.state_dict().items())
    for name, unit in units.items():
        if not unit.convolution.binary_weights:
            raise InputError(
                f"model has real weights in {name}.convolution, as after training step 1; only networks with "
                "binary_weights=True (step 2) can be packed."
            )
    stem = _fold_stem(model.stem, precision)
    folded = tuple(_fold_unit(name, unit, precision) for name, unit in units.items())
    for part, tensors in (("stem", tensors_of(stem)), ("units", tensors_of(folded))):
        _check_finite((f"{part}.{name}", tensor) for name, tensor in tensors)
    return type(model).__name__, stem, folded


def _check_kind(model: nn.Module, with_head: bool) -> ReActNet:
    own = [getattr(type(model), name, None) is getattr(ReActNet, name) for name in ("forward", "features")]
    if not isinstance(model, ReActNet) or not all(own) or type(model.stem) is not Stem:
        raise InputError(
            f"model is {type(model).__name__}; packing needs a ReActNet18, a ReActNetA or another network of a Stem, "
            "ResidualUnits and a linear classifier."
        )
    if with_head and model.classifier is None:
        raise InputError("model has features_only=True; packing needs a network with a head.")
    return model


def _units_of(model: ReActNet) -> dict[str, ResidualUnit]:
    """The residual units in the order of the forward pass, by name."""
    modules = {f"body.{name}": m for name, m in model.body.named_modules() if name and type(m) is not nn.Sequential}
    units = {name: module for name, module in modules.items() if type(module) is ResidualUnit}
    inside = tuple(f"{name}." for name in units)
    for name, module in modules.items():
        if name not in units and not name.startswith(inside):
            raise InputError(f"model has a {type(module).__name__} at {name}; packing knows ResidualUnits alone.")
    return units


def _fold_stem(stem: Stem, precision: RealPrecision) -> PackedStem:
    layer = stem.convolution
    _check_geometry("stem.convolution", layer)
    factor, shift = fold_normalizer(stem.after_convolution, layer.out_channels)
    weight = _effective_weight(layer).double() * factor.view(-1, 1, 1, 1)
    return PackedStem(RealWeight.round(weight, precision), shift.float(), layer.stride, stem.pool is not None)


def _fold_unit(name: str, unit: ResidualUnit, precision: RealPrecision) -> PackedUnit:
    _check_geometry(f"{name}.convolution", unit.convolution)
    beta = 1.0 if unit.beta is None else unit.beta.item()
    if not beta >= 0:
        raise InputError(f"{name}.beta={beta:g} must not be negative; it is 1 / a standard deviation.")

    def sign(x: Tensor) -> Tensor:
        shaped = x.view(1, -1, 1, 1).to(unit.rsign.shift.device)
        return unit.rsign(shaped, unit.beta).flatten().cpu()

    factor, shift = fold_normalizer(unit.after_convolution, unit.convolution.out_channels)
    factor, shift = factor * unit.alpha, shift * unit.alpha
    shortcut_scale = beta if unit.pool is not None else 1.0
    projection: TernaryWeight | RealWeight | None = None
    if unit.projection is not None:
        _check_geometry(f"{name}.projection", unit.projection)
        projection_factor, projection_shift = fold_normalizer(unit.projection_norm, unit.projection.out_channels)
        shift = shift + projection_shift
        projection_factor = projection_factor * shortcut_scale
        shortcut_scale = 1.0
        if unit.projection.binary_weights:
            projection = _fold_binary(unit.projection, projection_factor)
        else:
            weight = _effective_weight(unit.projection).double() * projection_factor.view(-1, 1, 1, 1)
            projection = RealWeight.round(weight, precision)
    rprelu = unit.rprelu
    shift_in = rprelu.shift_in.detach().cpu().double() + shift
    return PackedUnit(
        thresholds=find_thresholds(sign, unit.rsign.shift.numel()),
        weight=_fold_binary(unit.convolution, factor),
        rprelu=torch.stack([shift_in, rprelu.slope.cpu().double(), rprelu.shift_out.cpu().double()]).float(),
        stride=unit.convolution.stride,
        projection=projection,
        shortcut_scale=torch.tensor(shortcut_scale).item(),
    )


def _fold_binary(layer: BinaryConv2d, factor: Tensor) -> TernaryWeight:
    """Signs and scales of factor * effective weight, `factor` float64 (O,)."""
    weight, mask = _effective_weight(layer), layer.mask
    # Every survivor of a filter has the same magnitude, exactly.
    scale = weight.flatten(1).abs().amax(1).double() * factor
    values = torch.where(weight >= 0, 1, -1).to(torch.int8)
    values = torch.where(factor.view(-1, 1, 1, 1) < 0, -values, values)
    there = torch.arange(layer.out_channels) if layer.kept_rows is None else layer.kept_rows.cpu()
    if mask is not None:
        values[there] *= mask.cpu()
    # What is multiplied by 0 can be anything, so that whole filters that are pruned need no plane of survivors.
    silent = scale.float() == 0
    values[silent] = int((values[~silent] != 0).all())
    return TernaryWeight.from_values(values, scale.abs().float())


def _fold_classifier(classifier: nn.Module, precision: RealPrecision) -> PackedClassifier:
    weight, bias = fold_head(classifier)
    return PackedClassifier(RealWeight.round(weight, precision), bias)


def _effective_weight(layer: BinaryConv2d) -> Tensor:
    """Of all output channels: a row that is gone is one of zeros."""
    weight = layer.effective_weight().detach().cpu()
    if layer.kept_rows is None:
        return weight
    return weight.new_zeros(layer.out_channels, *weight.shape[1:]).index_copy(0, layer.kept_rows.cpu(), weight)


def _check_finite(tensors: Iterable[tuple[str, Tensor]]) -> None:
    for name, tensor in tensors:
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"model has values that are not finite in {name}; pack a network that has not diverged.")


def _check_geometry(name: str, layer: BinaryConv2d) -> None:
    if layer.groups != 1 or layer.kernel_size % 2 == 0 or layer.padding != (layer.kernel_size - 1) // 2:
        raise InputError(
            f"{name} has groups={layer.groups}, kernel_size={layer.kernel_size}, padding={layer.padding}; packing "
            "needs one group, an odd kernel and padding that keeps the size."
        )
