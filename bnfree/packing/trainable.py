"""Constants and bits -> weights of a BN-free network that computes the same, to be trained on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bnfree.activations import PowerOfTwoRPReLU
from bnfree.backbones.residual import ReActNet, ResidualUnit
from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError
from bnfree.packing.bits import TernaryWeight
from bnfree.packing.layers import PackedLayers, PackedUnit
from bnfree.packing.real_weights import RealWeight
from bnfree.standardization import standardize_weight

# Thresholds that no activation reaches are the largest numbers there are, whose products overflow.
LARGEST_THRESHOLD = 1e4


@torch.no_grad()
def trainable_state_dict(layers: PackedLayers, network: nn.Module) -> dict[str, Tensor]:
    """The state dict of `network` with which it computes what a packed network does.

    Folding keeps what the network computes and not what it was trained with: every latent weight is as far from its
    flip as the typical one of a fresh network (1 / sqrt(fan-in)), beta is 1 where nothing in the file depends on it,
    and thresholds and gains are those that give the same outputs.

    Args:
        layers: what the file holds.
        network: BN-free network with binary weights of the architecture that was packed; it is not changed. Its head is
            a linear layer.

    Raises:
        InputError: another architecture, or a file of a network that was not BN-free.
    """
    if not isinstance(network, ReActNet) or not network.variant.scaled or not network.variant.binary_weights:
        raise InputError(
            "a packed network goes on training as a BN-free ReActNet with binary weights alone; give a backbone with "
            "norm='bn_free' and binary_weights=True."
        )
    units = {name: unit for name, unit in network.named_modules() if isinstance(unit, ResidualUnit)}
    if len(units) != len(layers.units):
        raise InputError(f"the packed network has {len(layers.units)} residual units, the backbone {len(units)}.")
    if bool(layers.stem.bias.any()):
        raise InputError("the packed network's stem has a shift, as of batch norm; only BN-free ones train on.")
    state = dict(network.state_dict())
    _set(state, "stem.convolution", network.stem.convolution, layers.stem.weight)
    for (name, unit), packed in zip(units.items(), layers.units, strict=True):
        state |= _unit(name, unit, packed)
    state["classifier.weight"] = layers.classifier.weight.expand()
    state["classifier.bias"] = layers.classifier.bias.clone()
    return state


def _unit(name: str, unit: ResidualUnit, packed: PackedUnit) -> dict[str, Tensor]:
    beta = packed.shortcut_scale
    shift_in, slope, shift_out = packed.rprelu
    state = {
        f"{name}.beta": torch.tensor(beta),
        # With a beta of 0 the shift alone decides, and every threshold is one that no activation reaches.
        f"{name}.rsign.shift": -(beta or 1.0) * packed.thresholds.clamp(-LARGEST_THRESHOLD, LARGEST_THRESHOLD),
        f"{name}.rprelu.shift_in": shift_in.clone(),
        **_slopes(name, unit, slope),
        f"{name}.rprelu.shift_out": shift_out.clone(),
    }
    _set(state, f"{name}.convolution", unit.convolution, packed.weight, unit.alpha)
    if packed.projection is not None:
        if unit.projection is None or unit.projection.binary_weights != isinstance(packed.projection, TernaryWeight):
            kind = "binary" if isinstance(packed.projection, TernaryWeight) else "real"
            raise InputError(f"the packed network has a {kind} shortcut at {name}; give a backbone with such a one.")
        _set(state, f"{name}.projection", unit.projection, packed.projection)
    return state


def _slopes(name: str, unit: ResidualUnit, slope: Tensor) -> dict[str, Tensor]:
    if not isinstance(unit.rprelu, PowerOfTwoRPReLU):
        return {f"{name}.rprelu.slope": slope.clone()}
    mantissa, exponent = torch.frexp(slope)
    if not bool((mantissa == 0.5).all()):
        raise InputError(f"the packed network has slopes at {name} that are no powers of two; give slopes='learned'.")
    return {f"{name}.rprelu.exponent": exponent.float() - 1}


def _set(
    state: dict[str, Tensor], name: str, layer: BinaryConv2d, packed: TernaryWeight | RealWeight, alpha: float = 1.0
) -> None:
    """Puts in latent weight, gain and mask of a layer, whose output is multiplied by `alpha`."""
    if isinstance(packed, TernaryWeight):
        values = packed.values().float()
        latent = values * layer.weight[0].numel() ** -0.5
        mask = None if packed.survivors is None else values != 0
        seen = latent if layer.weight_transform is None else layer.weight_transform(latent)
        weight = standardize_weight(seen, mask, layer.eps)
        strength = weight.abs().sum((1, 2, 3)) / (values != 0).sum((1, 2, 3))
        wanted = packed.scale / alpha
        # Standardised weights are never of one sign alone.
        if bool((strength.nan_to_num() < 1e-3).logical_and(wanted > 0).any()):
            raise InputError(f"the packed network has a filter of equal signs at {name}, which no BN-free network has.")
        if layer.weight_transform is not None and bool((weight * values < 0)[wanted > 0].any()):
            raise InputError(
                f"the backbone's weight_transform gives other signs than the packed network has at {name}; give one "
                "that keeps signs, or none."
            )
        gain = torch.where(wanted > 0, wanted / strength, 0.0)
        if mask is not None:
            state[f"{name}.mask"] = mask
    else:
        weight = packed.expand()
        std = weight.std((1, 2, 3), correction=0).view(-1, 1, 1, 1).clamp(min=1e-12)
        latent = weight / std * weight[0].numel() ** -0.5
        unit = standardize_weight(latent, None, layer.eps)
        gain = (weight * unit).sum((1, 2, 3)) / (unit * unit).sum((1, 2, 3)).clamp(min=1e-12)
        if not torch.allclose(gain.view(-1, 1, 1, 1) * unit, weight, rtol=0, atol=1e-2 * std.max().item()):
            raise InputError(f"the packed network has weights at {name} that are not standardised, as of batch norm.")
    state[f"{name}.weight"], state[f"{name}.gain"] = latent, gain.view(-1, 1, 1, 1)
