"""The body alone on bits: the maps of the trained body."""

from __future__ import annotations

import pytest
import torch
from packable_networks import images, random_network, scatter

from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.errors import InputError
from bnfree.packing import load, load_features, pack, pack_features


def close(found, expected):
    assert [m.shape for m in found] == [m.shape for m in expected]
    return all((a - b).abs().max() <= 1e-4 * b.abs().max() for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", [ReActNet18, ReActNetA])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_maps_are_those_of_the_body(kind, stem, tmp_path):
    network = random_network(3, backbone=kind, width=4, stem=stem, density=0.5)
    x = images(0, 2, 3, 40, 33)
    expected = network.stage_features(x)
    packed = pack_features(network, engine="torch")
    assert close(packed(x), expected)
    assert packed.channels == network.feature_info.channels()
    packed.save(tmp_path / "body.safetensors")
    assert all(map(torch.equal, load_features(tmp_path / "body.safetensors", "torch")(x), packed(x)))


def test_a_packed_classifier_is_a_body_too(tmp_path):
    network = random_network(1, width=4)
    pack(network).save(tmp_path / "classifier.safetensors")
    found = load_features(tmp_path / "classifier.safetensors", "torch")(images(0, 1, 3, 16, 16))
    classifier = load(tmp_path / "classifier.safetensors", "torch")
    pooled = found[-1].mean((2, 3)) @ classifier.layers.classifier.weight.expand().T
    expected = classifier(images(0, 1, 3, 16, 16))
    assert torch.allclose(pooled + classifier.layers.classifier.bias, expected, atol=1e-5)


def test_numba_gives_the_same_maps():
    pytest.importorskip("numba", reason="pip install 'bnfree[fast]'")
    network = scatter(ReActNet18(width=4, blocks_per_stage=[1, 1, 1, 1], features_only=True))
    x = images(0, 2, 3, 16, 16)
    assert close(pack_features(network, engine="numba")(x), pack_features(network, engine="torch")(x))


def test_what_has_no_body_is_refused():
    with pytest.raises(InputError, match="binary_weights=True"):
        pack_features(ReActNet18(width=2, binary_weights=False, features_only=True))
    with pytest.raises(InputError, match="packing needs a ReActNet18"):
        pack_features(torch.nn.Linear(2, 2))
    packed = pack_features(ReActNet18(width=2, features_only=True), engine="torch")
    with pytest.raises(InputError, match=r"images has shape \(1, 4, 8, 8\); the network takes \(N, 3, H, W\)"):
        packed(torch.zeros(1, 4, 8, 8))
    with pytest.raises(InputError, match="uint8"):
        packed(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    pytest.importorskip("openvino", reason="pip install 'bnfree[openvino]'")
    with pytest.raises(InputError, match="engine='openvino' computes whole networks"):
        pack_features(ReActNet18(width=2, features_only=True), engine="openvino")
