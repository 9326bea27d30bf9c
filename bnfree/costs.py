"""What a network costs: operations, density and stored bits of each layer.

Sources: Bi-Real Net (ECCV 2018) and ReActNet (Liu et al., ECCV 2020) for OPs = BOPs / 64 + FLOPs; the counts that the
tests reproduce are ReActNet's and recounts of the public code of "BNN - BN = ?" (arXiv 2104.08215).

Operations. One multiply-accumulate is one operation, and only convolutions and linear layers have any. Not counted, as
in the papers: normalisation, RSign, RPReLU, biases, scales and gains, alpha and beta, pooling, additions of shortcuts,
the standardisation of weights (constants after training), and matrix products outside of such layers (attention). What
does not fold away, such as group norm, is named as uncounted.

BOPs are the operations of layers with binary weights, FLOPs those of all others. In step 1 the activations are binary
and the weights real, so that everything is FLOPs. The public BN-free ReActNet-18 binarises the weights of its 1x1
shortcuts, whose input is real: they are BOPs here (1.45e8 OPs in all), and `bops_on_real_input` says how many, since a
device that cannot add real activations with signs pays them as FLOPs. Pruned weights are counted like the others, as
the papers' networks are dense; the density says what could be skipped.

Storage. The bits of a deployed network, without what its file format adds:

    binary weight                             1 bit, and 1 bit more in a layer of which a filter is pruned in part (a
                                              plane of signs, a plane of survivors)
    filter of binary weights                  1 number: mean |w|, gain and alpha folded into one scale
    filter that is 0 or not there             nothing; all filters of such a layer have 1 bit more: whether it is there
    weight or bias of a real layer            1 number of half precision; pruned ones too; standardisation and gain are
                                              folded into the weight
    channel of a batch norm                   2 numbers: scale and shift
    other parameters and constants            1 number each: shift of RSign, shifts and slope of RPReLU, beta

These numbers have 32 bits unless said otherwise, because rounding a threshold turns activations over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnfree.errors import InputError
from bnfree.layer_calls import LayerCall, find_layers, record_calls
from bnfree.normalizers import is_per_image
from bnfree.state_dicts import uncompiled

CONSTANT_BITS = 32
OTHERS = "other parameters"


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """One convolution or linear layer; the last row of a network can be all parameters outside of those."""

    name: str
    """Name of the layer in the network; `other parameters` for the last row."""
    kind: str
    """`convolution`, `linear` or `other`."""
    binary_weights: bool = False
    """Whether the weights are binary."""
    binary_input: bool = False
    """Whether every value of the input is exactly -1 or +1."""
    input_shape: tuple[int, ...] = ()
    """(C, H, W) of the input for one image, at the layer's first call; empty if the layer is never called."""
    output_shape: tuple[int, ...] = ()
    """(C, H, W) of the output, likewise; channels of rows that a convolution has lost are among them."""
    kernel_size: tuple[int, ...] = ()
    """(kH, kW); empty in linear layers."""
    stride: tuple[int, ...] = ()
    """(sH, sW); empty in linear layers."""
    binary_params: int = 0
    """Weights that are binary, pruned ones included."""
    real_params: int
    """All other parameters of the layer."""
    bops: int = 0
    """Multiply-accumulates per image with binary weights, of the rows that are there."""
    flops: int = 0
    """Multiply-accumulates per image with real weights."""
    weights: int = 0
    """Number of weights, without bias and gain; 0 in the row of other parameters."""
    density: float = 1.0
    """Share of the effective weights that are not 0; 1 in the row of other parameters."""
    bits: int
    """Bits stored in a deployed network."""

    @property
    def ops(self) -> float:
        """OPs = BOPs / 64 + FLOPs."""
        return self.bops / 64 + self.flops


@dataclass(frozen=True)
class NetworkCost:
    """The rows of a network; every total is their sum."""

    image_shape: tuple[int, int, int]
    """(C, H, W) of the image that is counted for."""
    rows: tuple[LayerCost, ...]
    """One for each layer, in the order of the network's modules."""
    uncounted: tuple[str, ...]
    """Names of what takes part in no counted operation: weights that are matrices outside of convolutions and linear
    layers, layers that were never called, and normalisers that compute statistics of each image."""
    bytes_float32: int
    """Parameters and constants in float32, as in a checkpoint of the weights."""

    @property
    def bops(self) -> int:
        """Multiply-accumulates per image with binary weights."""
        return sum(row.bops for row in self.rows)

    @property
    def bops_on_real_input(self) -> int:
        """Those among `bops` whose input is not binary."""
        return sum(row.bops for row in self.rows if not row.binary_input)

    @property
    def flops(self) -> int:
        """Multiply-accumulates per image with real weights."""
        return sum(row.flops for row in self.rows)

    @property
    def ops(self) -> float:
        """OPs = BOPs / 64 + FLOPs."""
        return self.bops / 64 + self.flops

    @property
    def binary_params(self) -> int:
        """Weights that are binary."""
        return sum(row.binary_params for row in self.rows)

    @property
    def real_params(self) -> int:
        """All other parameters."""
        return sum(row.real_params for row in self.rows)

    @property
    def density(self) -> float:
        """Share of the effective weights of convolutions and linear layers that are not 0; 1 if there are none."""
        weights = sum(row.weights for row in self.rows)
        return sum(row.density * row.weights for row in self.rows) / weights if weights else 1.0

    @property
    def bytes_packed(self) -> int:
        """Bytes of the deployed network, rounded up."""
        return -(-sum(row.bits for row in self.rows) // 8)


def count_ops(model: nn.Module, image_shape: Sequence[int], real_bits: int = 16) -> NetworkCost:
    """Counts operations for one image, parameters and stored bits of a network, layer by layer.

    Works for any module: `BinaryConv2d`, PyTorch's convolutions and linear layers, and subclasses of them are counted;
    one with a true attribute `binary_weights` has binary weights. Shapes come from one forward pass over a random image
    in evaluation mode, without gradients. The model is left as it was: its modes, parameters, buffers and gradients,
    and the global random state.

    Args:
        model: the network, from images (N, C, H, W) to anything.
        image_shape: (C, H, W) of an image.
        real_bits: bits in which a weight or bias of a real layer is stored.

    Raises:
        InputError: `image_shape` is not three positive integers, or the network cannot process such an image.

    Example:
        >>> from bnfree.backbones import ReActNet18
        >>> cost = count_ops(ReActNet18(num_classes=10), (3, 32, 32))
        >>> f"{cost.bops:.3e} {cost.flops:.3e} {cost.ops:.3e}", cost.bytes_packed
        ('5.474e+08 8.066e+06 1.662e+07', 1806036)
    """
    shape = tuple(image_shape) if isinstance(image_shape, Sequence) else (image_shape,)
    if len(shape) != 3 or not all(isinstance(size, int) and size > 0 for size in shape):
        raise InputError(f"image_shape={image_shape!r} must be three positive integers (C, H, W), such as (3, 32, 32).")
    # torch.compile wraps the network; counting runs it once, which is not worth compiling for.
    model = uncompiled(model)
    layers = find_layers(model)
    calls = record_calls(model, layers, (shape[0], shape[1], shape[2]))
    owned: dict[str, int] = dict.fromkeys(layers, 0)
    others: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        owner = _owner(name, layers)
        if owner is None:
            others[name] = parameter
        else:
            owned[owner] += parameter.numel()
    rows = [_layer_cost(name, layer, owned[name], calls[name], real_bits) for name, layer in layers.items()]
    constants = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if others or constants:
        rows.append(_other_parameters(model, others, constants))
    return NetworkCost(
        image_shape=(shape[0], shape[1], shape[2]),
        rows=tuple(rows),
        uncounted=(
            *(name for name, parameter in others.items() if sum(size > 1 for size in parameter.shape) > 1),
            *(name for name in layers if not calls[name]),
            *(name for name, module in model.named_modules() if is_per_image(module)),
        ),
        bytes_float32=4 * sum(tensor.numel() for tensor in (*model.parameters(), *constants)),
    )


def _layer_cost(name: str, layer: Any, owned: int, calls: list[LayerCall], real_bits: int) -> LayerCost:
    """The row of one layer; `owned` is the number of its parameters, without those that an earlier layer has too."""
    binary = bool(getattr(layer, "binary_weights", False))
    with torch.no_grad():
        weight: Tensor = layer.effective_weight() if hasattr(layer, "effective_weight") else layer.weight
    binary_params = min(weight.numel(), owned) if binary else 0
    gain = getattr(layer, "gain", None)
    kept = owned - binary_params - (gain.numel() if isinstance(gain, nn.Parameter) else 0)
    if binary:
        bits = _bits_of_binary(layer, weight, stored=binary_params > 0) + CONSTANT_BITS * kept
    else:
        bits = real_bits * kept
    macs = sum(call.macs for call in calls)
    linear = isinstance(layer, nn.Linear)
    return LayerCost(
        name=name or type(layer).__name__,
        kind="linear" if linear else "convolution",
        binary_weights=binary,
        binary_input=bool(calls) and all(call.binary_input for call in calls),
        input_shape=calls[0].input_shape if calls else (),
        output_shape=calls[0].output_shape if calls else (),
        kernel_size=() if linear else _sizes(layer.kernel_size),
        stride=() if linear else _sizes(layer.stride),
        binary_params=binary_params,
        real_params=owned - binary_params,
        bops=macs if binary else 0,
        flops=0 if binary else macs,
        weights=weight.numel(),
        density=int(weight.count_nonzero()) / weight.numel() if weight.numel() else 1.0,
        bits=bits,
    )


def _bits_of_binary(layer: Any, weight: Tensor, stored: bool) -> int:
    """Those of `bnfree.packing`'s files; `stored` is whether the weights are not those of an earlier layer."""
    filters = weight.detach().flatten(1)
    filters = filters[(filters != 0).any(1)]
    outputs = getattr(layer, "out_channels", weight.shape[0])
    planes = 1 if bool((filters != 0).all()) else 2
    return planes * filters.numel() * stored + CONSTANT_BITS * len(filters) + (outputs if len(filters) < outputs else 0)


def _other_parameters(model: nn.Module, others: dict[str, Tensor], constants: list[Tensor]) -> LayerCost:
    """The row of everything that is stored outside of convolutions and linear layers."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    folded = {id(tensor) for norm in norms for tensor in (*norm.parameters(), *norm.buffers())}
    numbers = sum(tensor.numel() for tensor in (*others.values(), *constants) if id(tensor) not in folded)
    numbers += sum(2 * norm.num_features for norm in norms)
    return LayerCost(
        name=OTHERS,
        kind="other",
        real_params=sum(parameter.numel() for parameter in others.values()),
        bits=CONSTANT_BITS * numbers,
    )


def _owner(parameter: str, layers: dict[str, nn.Module]) -> str | None:
    """Name of the innermost layer that a parameter lies in."""
    name = parameter
    while name:
        name = name.rpartition(".")[0]
        if name in layers:
            return name
    return None


def _sizes(size: int | tuple[int, ...]) -> tuple[int, ...]:
    return (size, size) if isinstance(size, int) else tuple(size)
