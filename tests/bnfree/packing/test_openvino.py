"""OpenVINO, which shares no code with the other engines, against them and against the trained network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import packable_networks
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from packable_networks import TwoUnits, images, random_network, scatter

from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.packing import NetworkInfo, compare, pack

pytest.importorskip("openvino")

networks = st.fixed_dictionaries(
    {
        "backbone": st.sampled_from([ReActNet18, ReActNetA]),
        "norm": st.sampled_from(["bn_free", "batch_norm", "none"]),
        "stem": st.sampled_from(["cifar", "imagenet"]),
        # Bits for multiples of eight, real convolutions for the others.
        "width": st.sampled_from([3, 8, 12, 16]),
        "in_channels": st.sampled_from([1, 3]),
        "binary_shortcut": st.booleans(),
        "density": st.sampled_from([None, 0.8, 0.3]),
    }
)
sizes = st.tuples(st.integers(1, 3), st.integers(1, 17), st.integers(1, 17))


def agree(options, size, seed):
    network = random_network(seed, **dict(options))
    x = images(seed, size[0], options["in_channels"], *size[1:])
    packed = pack(network, "float32", engine="openvino")
    result = compare(network, packed, x)
    assert result.unexplained == 0, result
    if result.near_threshold == 0:
        expected = pack(network, "float32", engine="torch")(x)
        assert (packed(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


PRUNED = {
    "backbone": ReActNet18, "norm": "bn_free", "stem": "cifar", "width": 8, "in_channels": 3, "binary_shortcut": True,
    "density": 0.5,
}  # fmt: skip


@example(options=PRUNED, size=(2, 1, 7), seed=0)
@given(options=networks, size=sizes, seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=1)
def test_logits_are_those_of_the_trained_network(options, size, seed):
    agree(options, size, seed)


@pytest.mark.slow
@given(options=networks, size=sizes, seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=15)
def test_logits_are_those_of_the_trained_network_often(options, size, seed):
    agree(options, size, seed)


def test_every_shape_is_compiled_for_itself():
    packed = pack(scatter(TwoUnits(width=8)), engine="openvino")
    batch = images(0, 5, 2, 8, 8)
    logits = packed(batch)
    assert torch.allclose(packed(batch[:1]), logits[:1], rtol=1e-5, atol=1e-5)
    for size in range(3, 9):
        assert packed(images(0, 1, 2, size, size)).shape == (1, 4)
    assert torch.equal(packed(batch), logits)
    assert packed(batch[:0]).shape == (0, 4)


def test_a_saved_model_takes_other_shapes(tmp_path):
    from bnfree.packing.openvino_engine import OpenVINONetwork, save_openvino

    packed = pack(scatter(TwoUnits(width=8), density=0.6), "float32", engine="torch")
    info = NetworkInfo(mean=(0.5, 0.25), class_names=("a", "b", "c", "d"))
    save_openvino(packed.layers, info, tmp_path / "network.xml", (2, 8, 8))
    assert {path.name for path in tmp_path.iterdir()} == {"network.xml", "network.bin"}
    read = OpenVINONetwork.of_file(tmp_path / "network.xml")
    for shape in ((1, 2, 8, 8), (3, 2, 9, 5)):
        x = images(1, *shape)
        assert torch.allclose(read(x), packed(x), rtol=1e-4, atol=1e-4)

    import openvino

    model = openvino.Core().read_model(tmp_path / "network.xml")
    assert model.get_rt_info(["bnfree", "mean"]).astype(str) == "(0.5, 0.25)"


SIGNALS = """
import gc, os, signal
import torch
from packable_networks import TwoUnits, scatter
from bnfree.packing import pack
signal.signal(signal.SIGUSR1, lambda *_: None)
first = pack(scatter(TwoUnits(width=8)), engine="openvino")
first(torch.zeros(1, 2, 8, 8))
second = pack(scatter(TwoUnits(width=8)), engine="openvino")
second(torch.zeros(1, 2, 8, 8))
second(torch.zeros(2, 2, 8, 8))
del first
gc.collect()
del second
gc.collect()
os.kill(os.getpid(), signal.SIGUSR1)
print("alive")
"""


@pytest.mark.slow
def test_signals_reach_a_process_whose_networks_are_gone():
    run = subprocess.run(
        [sys.executable, "-c", SIGNALS],
        capture_output=True,
        text=True,
        timeout=1200,
        cwd=Path(packable_networks.__file__).parent,
    )
    assert (run.returncode, run.stdout) == (0, "alive\n"), run.stderr
