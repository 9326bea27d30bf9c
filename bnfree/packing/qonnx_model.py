"""A packed network as a QONNX model, which flows for FPGAs read: ONNX with nodes that say what has one bit.

QONNX (github.com/fastmachinelearning/qonnx) adds two nodes to ONNX: `BipolarQuant`, +1 from 0 on and -1 below, and
`Quant`, which rounds to a number of bits. A residual unit becomes

    x -> Add(-threshold) -> BipolarQuant -> Conv -> Mul(scale) -> Add(shortcut) -> Add -> PRelu -> Add

with weights behind a `BipolarQuant` of their own, pruned ones, which are -1, 0 and +1, behind a `Quant` of two bits.
A difference of two float32 numbers is 0 only where they are equal: the sign is +1 exactly from the threshold on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import onnx
import torch
from onnx import helper
from torch import Tensor

from bnfree.packing.bits import TernaryWeight
from bnfree.packing.info import NetworkInfo
from bnfree.packing.layers import PackedLayers, PackedUnit
from bnfree.packing.qonnx_graph import ChannelsLastGraph, Graph

LAYOUT = "bnfree.layout"


def build_qonnx(layers: PackedLayers, shape: tuple[int, int, int, int], channels_last: bool = False) -> onnx.ModelProto:
    """The model from `images` to `logits` (N, num_classes), in float32, all shapes written.

    Args:
        layers: constants and bits; real weights of 8 bits become `Quant` nodes with a scale for each filter.
        shape: (N, C, H, W) of the normalised images; the flows ask for fixed ones.
        channels_last: images (N, H, W, C), and neither PRelu nor average pooling, for hls4ml.

    Raises:
        InputError: sizes that this form cannot have.
    """
    graph = (ChannelsLastGraph if channels_last else Graph)(shape)
    stem = layers.stem
    x = graph.convolution("images", graph.weight(stem.weight), stem.weight.values.shape[-1], stem.stride)
    x = graph.elementwise("Add", x, graph.channels(stem.bias))
    if stem.pool:
        x = graph.max_pool(x)
    for unit in layers.units:
        x = _unit(graph, x, unit)
    graph.linear(graph.average(x), layers.classifier.weight, layers.classifier.bias)
    model = graph.model(layers.architecture)
    helper.set_model_props(model, {LAYOUT: "NHWC" if channels_last else "NCHW"})
    return model


def save_qonnx(layers: PackedLayers, info: NetworkInfo, path: str | os.PathLike[str], channels_last: bool) -> None:
    """Writes the model for one image of the training size.

    Args:
        layers: constants and bits.
        info: its image_shape, which must be known, says the size; goes into the metadata, an entry `bnfree.NAME` in
            JSON for each field.
        path: file to write, customarily `*.onnx`.
        channels_last: see `build_qonnx`.

    Raises:
        InputError: sizes that this form cannot have.
    """
    if info.image_shape is None:
        raise ValueError("info.image_shape must be known.")
    model = build_qonnx(layers, (1, *info.image_shape), channels_last)
    known = {f"bnfree.{name}": json.dumps(value) for name, value in info.to_dict().items()}
    helper.set_model_props(model, known | {entry.key: entry.value for entry in model.metadata_props})
    onnx.checker.check_model(model)
    onnx.save(model, os.fspath(path))


def load_qonnx(path: str | os.PathLike[str]) -> Callable[[Tensor], Tensor]:
    """The model computed by qonnx's own executor, node by node, behind its cleanup: slow, for checks."""
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.util.cleanup import cleanup_model

    models: dict[int, Any] = {}
    channels_last = any(e.key == LAYOUT and e.value == "NHWC" for e in onnx.load(os.fspath(path)).metadata_props)

    def run(images: Tensor) -> Tensor:
        if len(images) not in models:
            models[len(images)] = cleanup_model(ModelWrapper(_of_batch(onnx.load(os.fspath(path)), len(images))))
        model = models[len(images)]
        ordered = images.permute(0, 2, 3, 1) if channels_last else images
        found = execute_onnx(model, {model.graph.input[0].name: ordered.contiguous().numpy()})
        return torch.from_numpy(found[model.graph.output[0].name])

    return run


def _of_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """The model for a number of images; qonnx's own ChangeBatchSize (1.0) forgets shapes that it cannot find again."""
    graph = model.graph
    signals = {graph.input[0].name}
    for node in graph.node:
        if signals & set(node.input):
            signals |= set(node.output)
    for tensor in (*graph.input, *graph.output, *graph.value_info):
        if tensor.name in signals:
            tensor.type.tensor_type.shape.dim[0].dim_value = batch
    return model


def _unit(graph: Graph, x: str, unit: PackedUnit) -> str:
    shift_in, slope, shift_out = unit.rprelu
    above = graph.elementwise("Add", x, graph.channels(-unit.thresholds))
    trunk = graph.binary_convolution(above, unit.weight, unit.stride)
    trunk = graph.elementwise("Mul", trunk, graph.channels(unit.weight.scale))
    trunk = graph.elementwise("Add", trunk, _shortcut(graph, x, unit))
    trunk = graph.elementwise("Add", trunk, graph.channels(shift_in))
    return graph.elementwise("Add", graph.prelu(trunk, slope), graph.channels(shift_out))


def _shortcut(graph: Graph, x: str, unit: PackedUnit) -> str:
    if unit.stride == 2:
        x = graph.average_pool(x)
    if unit.projection is not None:
        x = graph.convolution(x, graph.weight(unit.projection), 1, 1)
        binary = isinstance(unit.projection, TernaryWeight)
        return graph.elementwise("Mul", x, graph.channels(unit.projection.scale)) if binary else x
    if unit.shortcut_scale != 1:
        x = graph.elementwise("Mul", x, graph.constant(torch.tensor(unit.shortcut_scale)))
    repeats = unit.weight.shape[0] // unit.weight.shape[1]
    return graph.repeated(x, repeats) if repeats > 1 else x
