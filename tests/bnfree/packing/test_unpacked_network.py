"""Packed networks as plain torch modules, programs and ONNX models."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from packable_networks import TwoUnits, images, random_network, scatter

from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.packing import NetworkInfo, compare, pack
from bnfree.packing.unpacked_network import UnpackedNetwork

INFO = NetworkInfo(mean=(0.5, 0.25), std=(1.0, 2.0), class_names=("a", "b", "c", "d"))


@pytest.mark.parametrize("backbone", [ReActNet18, ReActNetA])
@pytest.mark.parametrize(("binary_shortcut", "density"), [(True, None), (False, 0.5)])
def test_it_computes_what_the_trained_network_does(backbone, binary_shortcut, density):
    network = random_network(0, backbone=backbone, width=4, binary_shortcut=binary_shortcut, density=density)
    unpacked = UnpackedNetwork(pack(network, "float32", engine="torch").layers)
    result = compare(network, unpacked, images(1, 4, 3, 11, 14))
    assert (result.near_threshold, result.unexplained) == (0, 0)
    assert result.largest_relative_difference < 1e-5
    assert not list(unpacked.parameters())


def cases():
    """A network, the size that it was trained on, and shapes that its program must take."""
    large = pack(scatter(TwoUnits(width=6), density=0.7), "float32", engine="torch").layers
    yield large, (2, 8, 8), [(2, 2, 8, 8), (1, 2, 8, 8), (5, 2, 9, 6)]
    yield large, None, [(1, 2, 64, 64), (3, 2, 31, 40)]
    small = pack(random_network(0, width=2, in_channels=2), "float32", engine="torch").layers
    yield small, (2, 8, 8), [(1, 2, 8, 8), (4, 2, 8, 8)]


def check_program(layers, shapes, run):
    for shape in shapes:
        x = images(1, *shape)
        assert torch.allclose(run(x), UnpackedNetwork(layers)(x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_saved_program_takes_images_like_those_of_training(tmp_path):
    from bnfree.packing.torch_program import INFO as ENTRY
    from bnfree.packing.torch_program import load_program, save_program

    path = tmp_path / "network.pt2"
    for layers, shape, shapes in cases():
        info = replace(INFO, image_shape=shape)
        save_program(layers, info, path)
        check_program(layers, shapes, load_program(path))
        extra = {ENTRY: ""}
        torch.export.load(path, extra_files=extra)
        assert NetworkInfo.from_dict(json.loads(extra[ENTRY])) == info


@pytest.mark.slow
def test_a_saved_onnx_model_takes_images_like_those_of_training(tmp_path, capsys):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from bnfree.packing.onnx_model import load_onnx, save_onnx

    path = tmp_path / "network.onnx"
    for layers, shape, shapes in cases():
        save_onnx(layers, replace(INFO, image_shape=shape), path)
        assert capsys.readouterr().out == ""
        check_program(layers, shapes, load_onnx(path))
        metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        assert json.loads(metadata["bnfree.class_names"]) == ["a", "b", "c", "d"]
