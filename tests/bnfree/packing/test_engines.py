"""Both engines against sums in 64-bit integers, and against each other."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packable_networks import TwoUnits, images, scatter

from bnfree.errors import InputError
from bnfree.packing import engines, pack
from bnfree.packing.bits import TernaryWeight
from bnfree.packing.engines import Engine, accepting_pixels, prepare_unit
from bnfree.packing.layers import PackedUnit
from bnfree.packing.unpacked_network import UnpackedNetwork

ENGINES = ["torch", "numba"]


def random_unit(random, in_channels, out_channels, kernel_size, stride, density):
    values = random.choice([-1, 1], (out_channels, in_channels, kernel_size, kernel_size))
    values = values * (random.random(values.shape) < density)
    weight = TernaryWeight.from_values(torch.tensor(values, dtype=torch.int8), torch.ones(out_channels))
    thresholds = torch.tensor(random.normal(size=in_channels), dtype=torch.float32)
    rprelu = torch.tensor([[0.0], [1.0], [0.0]]).expand(3, out_channels).contiguous()
    return PackedUnit(thresholds, weight, rprelu, stride, None, 1.0)


def integer_sums(unit, x):
    """Convolution of signs with zero padding, position by position, in int64."""
    weight = unit.weight.values().numpy().astype(np.int64)
    signs = np.where(x.numpy() >= unit.thresholds.numpy()[:, None, None], 1, -1).astype(np.int64)
    side, stride = weight.shape[2], unit.stride
    pad = (side - 1) // 2
    padded = np.pad(signs, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    height, width = (-(-size // stride) for size in x.shape[2:])
    sums = np.zeros((len(x), len(weight), height, width), np.int64)
    for i in range(height):
        for j in range(width):
            window = padded[:, :, i * stride : i * stride + side, j * stride : j * stride + side]
            sums[:, :, i, j] = np.einsum("ncij,ocij->no", window, weight)
    return sums


@pytest.mark.parametrize("engine", ENGINES)
@given(
    seed=st.integers(0, 2**32 - 1),
    in_channels=st.sampled_from([1, 2, 31, 63, 64, 65, 128, 130]),
    out_channels=st.sampled_from([1, 3, 63, 64, 65, 100]),
    kernel_size=st.sampled_from([1, 3, 5]),
    stride=st.sampled_from([1, 2]),
    size=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 16)),
    density=st.sampled_from([1.0, 0.5, 0.05, 0.0]),
)
@settings(deadline=None, max_examples=25)
def test_sums_are_exact_integers(engine, seed, in_channels, out_channels, kernel_size, stride, size, density):
    random = np.random.default_rng(seed)
    unit = random_unit(random, in_channels, out_channels, kernel_size, stride, density)
    batch, height, width = size
    x = torch.tensor(random.normal(size=(batch, in_channels, height, width)), dtype=torch.float32)
    # Exactly on the threshold is +1.
    x[0, :, 0, 0] = unit.thresholds
    expected = integer_sums(unit, x)
    sums = prepare_unit(unit, engine)(x, torch.zeros(expected.shape))
    assert sums.dtype == torch.float32
    assert np.array_equal(sums.numpy(), expected)


def test_both_engines_give_the_same_bits():
    random = np.random.default_rng(0)
    unit = random_unit(random, 70, 66, 3, 1, 0.8)
    constants = torch.tensor(random.normal(size=(4, 66)), dtype=torch.float32)
    weight = TernaryWeight(unit.weight.shape, unit.weight.signs, unit.weight.survivors, constants[0])
    unit = PackedUnit(unit.thresholds, weight, constants[1:], 1, None, 1.0)
    x, shortcut = (torch.tensor(random.normal(size=(2, c, 5, 7)), dtype=torch.float32) for c in (70, 66))
    x[1, 3] = torch.nan
    outputs = [prepare_unit(unit, engine)(x, shortcut) for engine in ENGINES]
    assert torch.equal(*outputs)
    assert not torch.equal(outputs[0], shortcut)


def test_without_numba_it_works_and_says_once_how_to_be_fast(monkeypatch):
    network, x = scatter(TwoUnits()), images(0, 2, 2, 6, 6)
    fast = pack(network, engine="numba")(x)
    monkeypatch.setattr(engines, "_slow_engine_mentioned", False)
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match=r"pip install 'bnfree\[fast\]'") as said:
        packed = pack(network)
    assert said[0].filename == __file__
    assert packed.engine == "torch"
    assert torch.allclose(packed(x), fast, rtol=1e-5, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pack(network)
    with pytest.raises(InputError, match=r"engine='numba' needs numba.*pip install"):
        pack(network, engine="numba")


class Unpacked(Engine):
    """An engine of one's own: a torch module with constant weights."""

    @staticmethod
    def prepare(layers, normalization):
        return accepting_pixels(UnpackedNetwork(layers), normalization)


def test_an_engine_of_ones_own():
    network, x = scatter(TwoUnits()), images(0, 2, 2, 6, 6)
    packed = pack(network, "float32", engine=Unpacked)
    assert packed.engine.endswith("Unpacked")
    torch.testing.assert_close(packed(x), pack(network, "float32", engine="torch")(x))


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("cuda", "engine='cuda' is not known; choose from numba, torch, openvino"),
        ("numbra", "engine='numbra' is not known; did you mean 'numba'?"),
        ("bnfree.packing.pack", "engine='bnfree.packing.pack' is no engine"),
    ],
)
def test_an_unknown_engine_is_refused(engine, message):
    with pytest.raises(InputError, match=message):
        pack(scatter(TwoUnits()), engine=engine)


@pytest.mark.slow
def test_threads_change_nothing():
    network, x = scatter(TwoUnits(width=66), density=0.7), images(0, 3, 2, 9, 7)
    packed, before = pack(network, engine="numba"), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = packed(x)
        torch.set_num_threads(2)
        together = packed(x)
    finally:
        torch.set_num_threads(before)
    assert torch.allclose(alone, together, rtol=1e-6)
    assert torch.equal(alone.argmax(1), together.argmax(1))


WITHOUT_CACHE = """
from numba.core.dispatcher import Dispatcher
def no_place(self):
    raise RuntimeError("cannot cache function: no locator available")
Dispatcher.enable_caching = no_place
import torch
from packable_networks import TwoUnits, images, scatter
from bnfree.packing import pack
network, x = scatter(TwoUnits()), images(0, 2, 2, 6, 6)
assert torch.allclose(pack(network, engine="numba")(x), pack(network, engine="torch")(x), rtol=1e-5, atol=1e-5)
"""


@pytest.mark.slow
def test_numba_is_imported_on_first_use():
    program = "import sys, bnfree.packing; print('numba' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "False"


@pytest.mark.slow
def test_machine_code_needs_no_place_on_disk():
    path = os.pathsep.join(sys.path)
    subprocess.run([sys.executable, "-c", WITHOUT_CACHE], env={**os.environ, "PYTHONPATH": path}, check=True)
