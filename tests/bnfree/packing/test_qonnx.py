"""QONNX models, computed by ONNX's reference with the nodes that it lacks, and by qonnx and hls4ml if installed."""

from __future__ import annotations

import dataclasses
import importlib.util

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from packable_networks import TwoUnits, images, random_network, scatter
from torch.nn import functional as F

from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.errors import InputError
from bnfree.packing import NetworkInfo, compare, pack
from bnfree.packing.packed_network import PackedNetwork
from bnfree.packing.real_weights import RealWeight

onnx = pytest.importorskip("onnx", reason="QONNX models are written by onnx: pip install 'bnfree[qonnx]'")

from onnx.reference import ReferenceEvaluator  # noqa: E402
from onnx.reference.op_run import OpRun  # noqa: E402

from bnfree.packing.qonnx_graph import CHANNELS_LAST, DOMAIN  # noqa: E402
from bnfree.packing.qonnx_model import build_qonnx, load_qonnx, save_qonnx  # noqa: E402

needs_qonnx = pytest.mark.skipif(
    importlib.util.find_spec("qonnx") is None, reason="qonnx's executor is not installed: pip install 'bnfree[qonnx]'"
)


class BipolarQuant(OpRun):
    op_domain = DOMAIN

    def _run(self, x, scale):
        return (np.where(x >= 0, scale, -scale).astype(np.float32),)


class Quant(OpRun):
    op_domain = DOMAIN

    def _run(self, x, scale, zero_point, bits, signed=None, narrow=None, rounding_mode=None):
        assert (signed, narrow, rounding_mode) == (1, 1, "ROUND")
        assert not zero_point.any()
        largest = 2 ** (bits[()] - 1) - 1
        return ((np.clip(np.round(x / scale), -largest, largest) * scale).astype(np.float32),)


class Conv(OpRun):
    op_domain = CHANNELS_LAST

    def _run(self, x, weight, kernel_shape=None, strides=None, pads=None, dilations=None, group=None, auto_pad=None):
        first = [torch.from_numpy(np.moveaxis(array, -1, 1).copy()) for array in (x, weight)]
        found = F.conv2d(*first, None, strides, pads[0], groups=group)
        return (np.moveaxis(found.numpy(), 1, -1),)


class MaxPool(OpRun):
    op_domain = CHANNELS_LAST

    def _run(self, x, kernel_shape=None, strides=None, pads=None, **defaults):
        found = F.max_pool2d(torch.from_numpy(np.moveaxis(x, -1, 1).copy()), kernel_shape, strides, pads[0])
        return (np.moveaxis(found.numpy(), 1, -1),)


def run(model, x, channels_last=False):
    evaluator = ReferenceEvaluator(model, new_ops=[BipolarQuant, Quant, Conv, MaxPool])
    ordered = x.permute(0, 2, 3, 1) if channels_last else x
    return torch.from_numpy(evaluator.run(None, {"images": ordered.contiguous().numpy()})[0])


networks = st.fixed_dictionaries(
    {
        "backbone": st.sampled_from([ReActNet18, ReActNetA]),
        "norm": st.sampled_from(["bn_free", "batch_norm"]),
        "stem": st.sampled_from(["cifar", "imagenet"]),
        "width": st.sampled_from([3, 4]),
        "in_channels": st.sampled_from([1, 3]),
        "binary_shortcut": st.booleans(),
        "density": st.sampled_from([None, 0.3]),
    }
)
PRUNED = {
    "backbone": ReActNet18, "norm": "bn_free", "stem": "imagenet", "width": 3, "in_channels": 3,
    "binary_shortcut": True, "density": 0.3,
}  # fmt: skip


def agree(options, size, precision, seed):
    network = random_network(seed, **dict(options))
    x = images(seed, size[0], options["in_channels"], *size[1:])
    packed = pack(network, precision, precision, engine="torch")
    expected = packed(x)
    model = build_qonnx(packed.layers, tuple(x.shape))
    onnx.checker.check_model(model)
    found = run(model, x)
    if compare(network, pack(network, "float32", engine="torch"), x).near_threshold == 0:
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)


@example(options=PRUNED, size=(2, 7, 5), precision="int8", seed=0)
@given(
    options=networks,
    size=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    precision=st.sampled_from(["float32", "int8"]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=1)
def test_logits_are_those_of_the_packed_network(options, size, precision, seed):
    agree(options, size, precision, seed)


def small(**options):
    return random_network(1, backbone=ReActNet18, width=4, blocks_per_stage=[1, 1, 1, 1], **options)


@pytest.mark.parametrize("options", [{"stem": "imagenet", "density": 0.4}, {"stem": "cifar", "binary_shortcut": True}])
def test_the_form_for_hls4ml_computes_the_same_with_other_nodes(options):
    packed, x = pack(small(**options), "float32", engine="torch"), images(0, 2, 3, 32, 32)
    model = build_qonnx(packed.layers, (2, 3, 32, 32), channels_last=True)
    assert (run(model, x, True) - packed(x)).abs().max() <= 1e-5 * packed(x).abs().max()
    kinds = {(node.domain, node.op_type) for node in model.graph.node}
    assert not {kind for _, kind in kinds} & {"PRelu", "AveragePool", "GlobalAveragePool", "Gemm"}
    # No bit lies outside of an image.
    made = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type == "Conv" and getattr(made.get(node.input[0]), "op_type", "") == "BipolarQuant":
            assert not any(next(a.ints for a in node.attribute if a.name == "pads"))


def test_an_activation_on_its_threshold_is_plus_one():
    layers = pack(scatter(TwoUnits()), "float32", engine="torch").layers
    stem, unit = layers.stem, layers.units[0]
    silent = RealWeight(torch.zeros_like(stem.weight.values), stem.weight.scale)
    units = (dataclasses.replace(unit, thresholds=stem.bias.clone()), *layers.units[1:])
    layers = dataclasses.replace(layers, stem=dataclasses.replace(stem, weight=silent), units=units)
    x = images(0, 1, 2, 4, 4)
    expected = PackedNetwork(layers, engine="torch")(x)
    below = dataclasses.replace(unit, thresholds=torch.nextafter(stem.bias, torch.tensor(torch.inf)))
    other = PackedNetwork(dataclasses.replace(layers, units=(below, *layers.units[1:])), engine="torch")(x)
    assert not torch.allclose(expected, other)
    for channels_last in (False, True):
        found = run(build_qonnx(layers, (1, 2, 4, 4), channels_last), x, channels_last)
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_every_tensor_has_the_shape_that_is_written():
    for channels_last in (False, True):
        model = build_qonnx(pack(small(stem="imagenet"), engine="torch").layers, (2, 3, 32, 32), channels_last)
        infos = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.value_info}
        assert {name for node in model.graph.node for name in node.output} == set(infos) | {"logits"}
        shown = onnx.ModelProto.FromString(model.SerializeToString())
        shown.graph.output.extend(i for i in model.graph.value_info)
        evaluator = ReferenceEvaluator(shown, new_ops=[BipolarQuant, Quant, Conv, MaxPool])
        x = np.zeros((2, 32, 32, 3) if channels_last else (2, 3, 32, 32), np.float32)
        for name, value in zip(evaluator.output_names, evaluator.run(None, {"images": x}), strict=True):
            assert name == "logits" or list(value.shape) == infos[name], name


def test_odd_sizes_are_refused_for_hls4ml():
    layers = pack(small(stem="cifar"), engine="torch").layers
    with pytest.raises(InputError, match="cannot halve 7x7 pixels"):
        build_qonnx(layers, (1, 3, 7, 7), channels_last=True)


@needs_qonnx
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("density", [None, 0.4])
def test_qonnx_computes_it_behind_its_own_transformations(tmp_path, channels_last, density):
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.transformation.infer_datatypes import InferDataTypes
    from qonnx.util.cleanup import cleanup_model

    packed, x = pack(small(density=density), "int8", "float32", engine="torch"), images(0, 100, 3, 8, 8)
    path = tmp_path / "network.onnx"
    save_qonnx(packed.layers, NetworkInfo(image_shape=(3, 8, 8)), path, channels_last)
    found, expected = load_qonnx(path)(x), packed(x)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    model = cleanup_model(ModelWrapper(str(path))).transform(InferDataTypes())
    assert model.check_all_tensor_shapes_specified()
    binary = [
        [model.get_tensor_datatype(name).name for name in node.input]
        for node in model.graph.node
        if node.op_type == "Conv" and model.get_tensor_datatype(node.input[0]).name == "BIPOLAR"
    ]
    assert binary == [["BIPOLAR", "BIPOLAR" if density is None else "INT2"]] * 4


@needs_qonnx
def test_a_width_that_doubles_survives_the_cleanup(tmp_path):
    network = random_network(0, backbone=ReActNetA, width=2, repeated_blocks=1)
    packed, x = pack(network, engine="torch"), images(0, 2, 3, 8, 8)
    save_qonnx(packed.layers, NetworkInfo(image_shape=(3, 8, 8)), tmp_path / "a.onnx", False)
    expected = packed(x)
    assert (load_qonnx(tmp_path / "a.onnx")(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


@needs_qonnx
@pytest.mark.slow
def test_hls4ml_computes_it(tmp_path):
    hls4ml = pytest.importorskip("hls4ml", reason="hls4ml is not installed: pip install hls4ml")
    from hls4ml.model.flow.flow import update_flow
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.util.cleanup import cleanup_model

    torch.manual_seed(0)
    network = ReActNet18(5, width=4, blocks_per_stage=[1, 1, 1, 1]).eval()
    packed, x = pack(network, "float32", engine="torch"), images(1, 100, 3, 8, 8)
    save_qonnx(packed.layers, NetworkInfo(image_shape=(3, 8, 8)), tmp_path / "network.onnx", True)
    model = cleanup_model(ModelWrapper(str(tmp_path / "network.onnx")))
    kept = {
        "parse_qonnx": ["scale_down_conv", "scale_down_add", "bias_down_add"],
        "convert": ["fuse_batch_normalization"],
    }
    for flow, passes in kept.items():
        update_flow(flow, remove_optimizers=passes)
    config = hls4ml.utils.config_from_onnx_model(
        model, granularity="name", backend="Vivado", default_precision="fixed<40,16>"
    )
    made = hls4ml.converters.convert_from_onnx_model(
        model, output_dir=str(tmp_path / "hls"), io_type="io_parallel", backend="Vivado", hls_config=config
    )
    made.compile()
    found = made.predict(np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy()))
    assert np.abs(found - packed(x).numpy()).max() < 1e-5
