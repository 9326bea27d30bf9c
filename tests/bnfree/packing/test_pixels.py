"""8-bit images: against convolutions of the normalised images in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packable_networks import WideUnits, scatter
from torch.nn import functional as F

from bnfree.backbones import ReActNetA
from bnfree.packing import NetworkInfo, load, numba_engine, pack
from bnfree.packing.bits import TernaryWeight
from bnfree.packing.engines import prepare_trunk
from bnfree.packing.layers import PackedClassifier, PackedLayers, PackedStem, PackedUnit
from bnfree.packing.numba_pixel_layout import fits
from bnfree.packing.numba_pixel_tile import has_instruction
from bnfree.packing.pixels import Normalization
from bnfree.packing.real_weights import RealWeight

COLOURS = NetworkInfo(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
# Steps of a weight of 24 bits between 0 and the filter's largest, two less than three signed bytes have.
STEPS = 127 * 65536 + 127 * 256 + 125


def pixels(seed, *shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def stem_alone(random, channels, out_channels, kernel_size, stride, pool):
    """A network whose trunk is the stem's output: its only unit adds 0 and changes nothing."""
    weight = torch.tensor(random.normal(size=(out_channels, channels, kernel_size, kernel_size)), dtype=torch.float32)
    # Filters of very different sizes, and one of zeros.
    weight *= torch.tensor(10.0 ** random.integers(-3, 4, (out_channels, 1, 1, 1)), dtype=torch.float32)
    weight[0] = 0
    bias = torch.tensor(random.normal(size=out_channels), dtype=torch.float32)
    signs = torch.ones(out_channels, out_channels, 1, 1, dtype=torch.int8)
    nothing = TernaryWeight.from_values(signs, torch.zeros(out_channels))
    rprelu = torch.tensor([[0.0], [1.0], [0.0]]).expand(3, out_channels).contiguous()
    unit = PackedUnit(torch.zeros(out_channels), nothing, rprelu, 1, None, 1.0)
    classifier = PackedClassifier(RealWeight.round(torch.ones(2, out_channels), "float32"), torch.zeros(2))
    stem = PackedStem(RealWeight.round(weight, "float32"), bias, stride, pool)
    return PackedLayers("Stem", stem, (unit,), classifier)


@given(
    seed=st.integers(0, 2**32 - 1),
    channels=st.integers(1, 4),
    out_channels=st.sampled_from([1, 31, 32, 64, 70]),
    kernel_size=st.sampled_from([1, 3, 5, 7]),
    stride=st.sampled_from([1, 2]),
    pool=st.booleans(),
    size=st.tuples(st.integers(1, 3), st.integers(1, 13), st.integers(1, 19)),
)
@settings(deadline=None, max_examples=40)
@pytest.mark.slow
def test_the_stem_is_that_of_normalised_images_within_a_step_of_each_weight(
    seed, channels, out_channels, kernel_size, stride, pool, size
):
    random = np.random.default_rng(seed)
    layers = stem_alone(random, channels, out_channels, kernel_size, stride, pool)
    mean, std = random.uniform(0, 1, channels), random.uniform(0.1, 0.5, channels)
    normalization = Normalization(tuple(mean), tuple(std))
    assert fits(layers.stem, normalization)
    images = torch.tensor(random.integers(0, 256, (size[0], channels, *size[1:]), np.uint8))
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    weight, bias = layers.stem.weight.expand().double(), layers.stem.bias.double().view(-1, 1, 1)
    padding = (kernel_size - 1) // 2
    sums = F.conv2d((images.double() / 255 - mean) / std, weight, None, stride, padding)
    distances = F.conv2d((images.double() - 255 * mean).abs(), torch.ones_like(weight[:1]), None, stride, padding)
    step = (weight / (255 * std)).abs().flatten(1).amax(1).view(-1, 1, 1) / STEPS
    lowest_plane = 128 * 255 * weight[0].numel() * step
    bound = step * distances + 2**-22 * (sums.abs() + bias.abs() + lowest_plane)
    expected = sums + bias
    if pool:
        expected, bound = (F.max_pool2d(values, 3, 2, 1) for values in (expected, bound))
    output = prepare_trunk(layers, "numba", normalization)(images)
    assert output.dtype == torch.float32
    if has_instruction():
        assert bool(((output.double() - expected).abs() <= bound).all())
    else:
        assert torch.allclose(output.double(), expected, rtol=1e-5, atol=1e-5 * float(weight.abs().max()))


@pytest.mark.parametrize("engine", ["numba", "torch"])
@pytest.mark.parametrize("network", [WideUnits("imagenet"), WideUnits("cifar"), ReActNetA(4, width=4)])
def test_logits_are_those_of_normalised_images(network, engine):
    packed = pack(scatter(network), "float32", info=COLOURS, engine=engine)
    images = pixels(0, 5, 3, 37, 35)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (COLOURS.mean, COLOURS.std))
    assert torch.allclose(packed(images), packed((images / 255 - mean) / std), rtol=1e-4, atol=1e-4)
    assert packed(images[:0]).shape == (0, 4)


def test_a_file_keeps_what_is_needed(tmp_path):
    packed, images = pack(scatter(WideUnits()), info=COLOURS), pixels(0, 2, 3, 20, 20)
    packed.save(tmp_path / "network.safetensors")
    assert torch.equal(load(tmp_path / "network.safetensors")(images), packed(images))


def test_without_the_instruction_or_with_many_channels_images_are_normalised(monkeypatch):
    images = pixels(1, 2, 3, 9, 11)
    monkeypatch.setattr(numba_engine, "has_instruction", lambda: False)
    packed = pack(scatter(WideUnits("cifar")), info=COLOURS, engine="numba")
    assert torch.equal(packed(images), packed(COLOURS.normalization(images)))
    monkeypatch.undo()
    layers, many = stem_alone(np.random.default_rng(0), 5, 32, 3, 1, False), Normalization((0.5,) * 5, (0.2,) * 5)
    assert not fits(layers.stem, many)
    images = pixels(2, 2, 5, 6, 6)
    trunk = prepare_trunk(layers, "numba", many)
    assert torch.equal(trunk(images), trunk(many(images)))


def test_sums_that_could_leave_32_bits_are_not_taken():
    stem = stem_alone(np.random.default_rng(0), 3, 32, 7, 2, True).stem
    assert fits(stem, Normalization((0.5,) * 3, (0.2,) * 3))
    assert not fits(stem, Normalization((-5.0,) * 3, (0.2,) * 3))
    assert not fits(stem, Normalization((0.5,) * 3, (1e-320,) * 3))


@pytest.mark.slow
def test_threads_change_nothing():
    packed, before = pack(scatter(WideUnits()), info=COLOURS, engine="numba"), torch.get_num_threads()
    images = pixels(3, 3, 3, 41, 39)
    try:
        torch.set_num_threads(1)
        alone = packed(images)
        torch.set_num_threads(2)
        assert torch.allclose(packed(images), alone, rtol=1e-6)
    finally:
        torch.set_num_threads(before)


@given(seed=st.integers(0, 2**32 - 1), mean=st.floats(0, 1), std=st.floats(0.01, 2))
@settings(deadline=None)
def test_pixels_come_back_from_normalised_images(seed, mean, std):
    normalization, images = Normalization((mean, 0.5), (std, 0.3)), pixels(seed, 2, 2, 3, 5)
    normalized = normalization(images)
    expected = (images.double() / 255 - torch.tensor([mean, 0.5]).double().view(-1, 1, 1)) / torch.tensor(
        [std, 0.3]
    ).double().view(-1, 1, 1)
    assert torch.allclose(normalized.double(), expected, rtol=1e-5, atol=1e-5 / std)
    assert torch.equal(normalization.pixels(normalized), images)
    normalized[1, 0, 2, 3] += 0.3 / (255 * std)
    assert normalization.pixels(normalized) is None
