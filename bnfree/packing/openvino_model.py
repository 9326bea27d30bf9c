"""A packed network as a graph of OpenVINO, whose opset1 has a convolution of bits.

The encoding is the explicit one: FakeQuantize with two levels gives 0 and 1 from one threshold a channel, and
BinaryConvolution in the mode `xnor-popcount` takes weights of type u1, bit 1 for +1, the first in the lowest bit;
positions outside of the image count nothing. The implicit one, an ordinary Convolution of -1 and +1 behind a
FakeQuantize, which OpenVINO rewrites, gives wrong numbers without a word (2026.4), so the layers here whose channels
BinaryConvolution cannot take are real convolutions of signs that no FakeQuantize makes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import torch
from numpy.typing import NDArray
from openvino import opset1, opset8
from torch import Tensor

from bnfree.packing.bits import TernaryWeight, pack_bits
from bnfree.packing.layers import PackedLayers, PackedUnit

# With other numbers of input channels the kernel returns wrong sums (2026.4).
CHANNELS = 8


def build_model(layers: PackedLayers, shape: tuple[int, int, int, int]) -> ov.Model:
    """The graph from images to logits, in float32.

    Args:
        layers: constants and bits.
        shape: (N, C, H, W) of the images. BinaryConvolution takes fixed sizes only; `Model.reshape` gives it others.
    """
    images = opset8.parameter(list(shape), np.float32, name="images")
    stem, classifier = layers.stem, layers.classifier
    x = _convolution(images, stem.weight.expand(), stem.stride)
    x = opset8.add(x, _channels(stem.bias))
    if stem.pool:
        x = opset1.max_pool(x, [2, 2], [1, 1], [1, 1], [3, 3])
    for unit in layers.units:
        x = _unit(x, unit)
    features = opset8.reduce_mean(x, np.array([2, 3]), keep_dims=False)
    logits = opset8.matmul(features, _constant(classifier.weight.expand()), False, True)
    result = opset8.result(opset8.add(logits, _constant(classifier.bias)), name="logits")
    return ov.Model([result], [images], layers.architecture)


def _unit(x: Any, unit: PackedUnit) -> Any:
    shift_in, slope, shift_out = unit.rprelu
    trunk = opset8.multiply(_sums_of_signs(x, unit), _channels(unit.weight.scale))
    trunk = opset8.add(opset8.add(trunk, _shortcut(x, unit)), _channels(shift_in))
    return opset8.add(opset8.prelu(trunk, _constant(slope)), _channels(shift_out))


def _sums_of_signs(x: Any, unit: PackedUnit) -> Any:
    if unit.weight.shape[1] % CHANNELS:
        positive = opset8.greater_equal(x, _channels(unit.thresholds))
        signs = opset8.select(positive, np.float32(1), np.float32(-1))
        return _convolution(signs, unit.weight.values().float(), unit.stride)
    # FakeQuantize gives 1 above its threshold, not from it on.
    below = torch.nextafter(unit.thresholds, torch.tensor(-torch.inf)).clamp(min=torch.finfo(torch.float32).min)
    bits = opset8.fake_quantize(x, _channels(below), _channels(below), np.float32(0), np.float32(1), 2)
    if unit.weight.survivors is None:
        return _binary_convolution(bits, unit.weight.signs, unit)
    # A pruned weight that is once +1 and once -1 adds up to nothing, and the survivors to twice their sum.
    values = unit.weight.values().flatten()
    ones = _binary_convolution(bits, pack_bits(values >= 0), unit)
    both = opset8.add(ones, _binary_convolution(bits, pack_bits(values > 0), unit))
    return opset8.multiply(both, np.float32(0.5))


def _binary_convolution(bits: Any, signs: Tensor, unit: PackedUnit) -> Any:
    shape = unit.weight.shape
    # Copied, since a tensor of OpenVINO does not keep the array alive that it looks into.
    weight = ov.op.Constant(ov.Tensor(signs.numpy(), ov.Shape(list(shape)), ov.Type.u1), shared_memory=False)
    padding = [(shape[-1] - 1) // 2] * 2
    return opset1.binary_convolution(
        bits, weight, [unit.stride] * 2, padding, padding, [1, 1], "xnor-popcount", 0.0
    )  # fmt: skip


def _shortcut(x: Any, unit: PackedUnit) -> Any:
    if unit.stride == 2:
        # A kernel must not be larger than its image.
        kernel = [min(2, size) for size in list(x.get_output_shape(0))[2:]]
        x = opset1.avg_pool(x, [2, 2], [0, 0], [0, 0], kernel, True, "ceil")
    if isinstance(unit.projection, TernaryWeight):
        return opset8.multiply(_convolution(x, unit.projection.values().float(), 1), _channels(unit.projection.scale))
    if unit.projection is not None:
        return _convolution(x, unit.projection.expand(), 1)
    if unit.shortcut_scale != 1:
        x = opset8.multiply(x, np.float32(unit.shortcut_scale))
    repeats = unit.weight.shape[0] // unit.weight.shape[1]
    return opset8.concat([x] * repeats, 1) if repeats > 1 else x


def _convolution(x: Any, weight: Tensor, stride: int) -> Any:
    padding = [(weight.shape[-1] - 1) // 2] * 2
    return opset8.convolution(x, _constant(weight), [stride] * 2, padding, padding, [1, 1])


def _channels(vector: Tensor) -> Any:
    return _constant(vector.view(1, -1, 1, 1))


def _constant(values: Tensor) -> Any:
    array: NDArray[np.float32] = values.contiguous().numpy()
    return ov.op.Constant(array, shared_memory=False)
