"""Packed networks in C with whole numbers, against the same arithmetic in numpy and against the packed networks."""

import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from c_networks import COMPILER, answers, example, needs_compiler, raw, run, write_c
from packable_networks import random_network
from torch.nn import functional as F

from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.datamodules import DigitsDataModule
from bnfree.errors import InputError
from bnfree.lightning_modules.deployment.check import check
from bnfree.packing import NetworkInfo, PackedNetwork, load, pretrained_path
from bnfree.packing.bits import TernaryWeight
from bnfree.packing.c_source.c_format import CFormat
from bnfree.packing.c_source.fixed_point import fixed_point
from bnfree.packing.c_source.source import CSource
from bnfree.packing.folding import fold
from bnfree.packing.layers import PackedClassifier, PackedLayers, PackedStem, PackedUnit
from bnfree.packing.real_weights import RealWeight

pytestmark = needs_compiler
NETWORKS = {
    "ReActNet18": {"width": 6},
    "ReActNet18, pruned, real shortcuts, stem of ImageNet": {"width": 4, "density": 0.2, "stem": "imagenet"},
    "ReActNet18, pruned, binary shortcuts, grey": {
        "width": 6, "density": 0.2, "binary_shortcut": True, "in_channels": 1,
    },
    "ReActNetA": {"backbone": ReActNetA, "width": 4},
    "ReActNetA, pruned, six channels": {"backbone": ReActNetA, "width": 4, "density": 0.2, "in_channels": 6},
}  # fmt: skip
FAST = ("ReActNet18, pruned, binary shortcuts, grey",)
SANITIZED = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def info_of(channels, height, width):
    return NetworkInfo((0.49, 0.48, 0.45, 0.4, 0.5, 0.6)[:channels], (0.25,) * channels, (channels, height, width))


def pixels_of(count, *shape):
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def near(x, bits):
    """x / 2^bits to the nearest, the upper of two: shifting whole numbers of 64 bits rounds down here."""
    return (x + (1 << (bits - 1))) >> bits


def as_whole(values, bits):
    return torch.round(torch.as_tensor(values).double() * 2.0**bits).long()


def channels_of(values):
    return values.view(1, -1, 1, 1)


def convolved(x, weight, stride, padding):
    """Exact, since nothing reaches 2^53."""
    return F.conv2d(x.double(), weight.double(), None, stride, padding).long()


class WholeNumbers:
    """The network in whole numbers of 64 bits, of which 32 must suffice.

    Only the powers of two come from the code under test.
    """

    def __init__(self, layers, info, places):
        self.layers, self.normalization = layers, info.normalization
        self.powers = fixed_point(layers, places, info.normalization)
        self.largest = 0

    def __call__(self, pixels):
        x, exponent = self.stem(pixels), self.powers.stem_exponent
        for unit, powers in zip(self.layers.units, self.powers.units, strict=True):
            x, exponent = self.unit(unit, powers, x, exponent), powers.exponent
        features = near(x.sum((2, 3)) * round(2**32 / (x.shape[2] * x.shape[3])), 32)
        classifier, bits = self.layers.classifier, self.powers.classifier_bits
        sums = features @ as_whole(classifier.weight.expand(), bits).T + as_whole(classifier.bias, exponent + bits)
        size = sums.abs().numpy()
        upper, lower = (half.astype(np.float32) for half in (size >> 32, size & 0xFFFFFFFF))
        logits = (upper * np.float32(1 << 32) + lower) * np.float32(2.0 ** -(exponent + bits))
        return torch.from_numpy(np.where(sums < 0, -logits, logits))

    def stem(self, pixels):
        stem, steps = self.layers.stem, torch.from_numpy(self.powers.stem_steps)
        factor, zero = self.normalization.factor(), self.normalization.zero()
        weight = stem.weight.expand().double() * factor.view(-1, 1, 1)
        taps = weight.flatten(1) / steps[:, None]
        rounded = taps.cumsum(1).round()
        taps = (rounded - F.pad(rounded, (1, 0))[:, :-1]).view_as(weight)
        assert (taps.sum((1, 2, 3)) - (weight / steps.view(-1, 1, 1, 1)).sum((1, 2, 3))).abs().max() <= 0.5 + 1e-6
        options = stem.stride, weight.shape[-1] // 2
        sums = convolved(pixels, taps, *options)
        met = F.conv2d(
            torch.ones(1, *pixels.shape[1:], dtype=torch.float64) * zero.view(-1, 1, 1), taps, None, *options
        )
        sums = sums + (channels_of(stem.bias.double() / steps) - met).round().long()
        assert sums.abs().max() < 1 << 31
        x = near(sums * channels_of(as_whole(steps, self.powers.stem_exponent + 32)), 32)
        return F.max_pool2d(x.double(), 3, 2, 1).long() if stem.pool else x

    def unit(self, unit, powers, x, exponent):
        scale, (shift_in, slope, shift_out) = unit.weight.scale, unit.rprelu
        reached = channels_of(unit.thresholds).double() * 2.0**exponent
        signs = torch.where(x.double() >= reached, 1, -1)
        sums = convolved(signs, unit.weight.values(), unit.stride, unit.weight.shape[-1] // 2)
        scaled = sums * (1 << powers.gain_bits) * channels_of(as_whole(scale, powers.exponent + 32 - powers.gain_bits))
        trunk = near(scaled, 32) + self.shortcut(unit, powers, x, exponent)
        trunk = trunk + channels_of(as_whole(shift_in, powers.exponent))
        sloped = near(trunk * (1 << powers.slope_bits) * channels_of(as_whole(slope, 32 - powers.slope_bits)), 32)
        trunk = torch.where(trunk > 0, trunk, sloped) + channels_of(as_whole(shift_out, powers.exponent))
        self.largest = max(self.largest, int(trunk.abs().max()))
        assert self.largest < 1 << 29
        return trunk

    def shortcut(self, unit, powers, x, exponent):
        computed = unit.stride == 2 or unit.projection is not None or unit.shortcut_scale != 1
        if computed or unit.weight.shape[0] != x.shape[1]:
            count = torch.ones(1, 1, *x.shape[2:])
            if unit.stride == 2:
                x = (F.avg_pool2d(x.double(), 2, 2, ceil_mode=True, divisor_override=1)).long()
                count = F.avg_pool2d(count, 2, 2, ceil_mode=True, divisor_override=1)
            assert x.abs().max() < 1 << 31
            x = near(x * (4 / count).long() * as_whole(unit.shortcut_scale, 30 + powers.pooled_exponent - exponent), 32)
        if unit.projection is None:
            return x.repeat(1, unit.weight.shape[0] // x.shape[1], 1, 1)
        bits, shift = powers.exponent - powers.pooled_exponent + powers.projection_shift, powers.projection_shift
        if isinstance(unit.projection, TernaryWeight):
            sums = convolved(x, unit.projection.values(), 1, 0)
            assert sums.abs().max() < 1 << 31
            return near(sums * channels_of(as_whole(unit.projection.scale, bits)), shift)
        weight = as_whole(unit.projection.expand()[:, :, 0, 0], bits)
        return near(torch.einsum("oi,nihw->nohw", weight, x), shift)


def random_layers(seed):
    """Units of kernels, strides, factors and shortcuts that no backbone has, and constants of very different sizes."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=generator)

    def whole(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    channels = whole(1, 40)
    stem = PackedStem(
        RealWeight.round(normal(channels, 2, 5, 5), "float32"), normal(channels), whole(1, 3), seed % 2 > 0
    )
    units = []
    for index in range(4):
        kind, in_channels = (seed + index) % 4, channels
        channels = channels * whole(1, 3) if kind < 2 else whole(1, 50)
        size = 2 * whole(0, 3) + 1
        signs = torch.randint(-1 if seed % 3 else 0, 2, (channels, in_channels, size, size), generator=generator)
        signs = signs if seed % 3 else 2 * signs - 1
        projection = None
        if kind == 2:
            values = torch.randint(-1, 2, (channels, in_channels, 1, 1), generator=generator)
            projection = TernaryWeight.from_values(values, 10 * normal(channels))
        elif kind == 3:
            projection = RealWeight.round(normal(channels, in_channels, 1, 1), "float32")
        rprelu = torch.stack([normal(channels), 3 * normal(channels), 100 * normal(channels)])
        factor = (1.0, 0.5, 3.5, -2.0)[whole(0, 4)] if projection is None else 1.0
        weight = TernaryWeight.from_values(signs, 10 ** normal(channels))
        units.append(PackedUnit(5 * normal(in_channels), weight, rprelu, whole(1, 3), projection, factor))
    classifier = PackedClassifier(RealWeight.round(normal(5, channels), "float32"), 1000 * normal(5))
    return PackedLayers("Units", stem, tuple(units), classifier)


def compare(folder, layers, info, pixels, *flags):
    """What the example prints; its logits must be the reference's, bit by bit."""
    source = write_c(folder, layers, info, "fixed")
    image = raw(folder / "image.raw", pixels)
    printed = run(example(folder, COMPILER, *flags), image)
    classes, logits = answers(printed, layers.num_classes)
    assert torch.equal(logits, WholeNumbers(layers, info, source.arena.units)(pixels))
    assert torch.equal(classes, logits.argmax(1))
    return printed


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in NETWORKS])
def test_logits_are_those_of_the_same_whole_numbers_elsewhere(tmp_path, name):
    network = random_network(5, **NETWORKS[name])
    channels, layers = network.in_channels, fold(network, "float32")
    info, pixels = info_of(channels, 19, 18), pixels_of(4, channels, 19, 18)
    printed = compare(tmp_path, layers, info, pixels, "-O1", "-march=native")
    logits, packed = answers(printed, 5)[1], PackedNetwork(layers, info, "torch")
    expected = packed(pixels)
    # A sign that turns over moves all that is behind it, so not every image is as near.
    difference = (logits - expected).abs().amax(1) / expected.abs().amax(1)
    assert (difference < 1e-4).any()
    batches = [(info.normalization(pixels), None)]
    found = check(network, lambda images: logits, None, packed, batches, CFormat(arithmetic="fixed").tolerance)
    assert found.passed
    assert found.tolerance == 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(*SANITIZED, "-march=native"), ("-O1", "-mavx2"), SANITIZED], ids=" ".join)
def test_every_processor_gives_the_same_and_sanitizers_find_nothing(tmp_path, flags):
    if "-mavx2" in flags and torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("this processor does not have AVX2")
    for seed in (0, 3):
        compare(tmp_path, random_layers(seed), info_of(2, 13, 9), pixels_of(2, 2, 13, 9), *flags)


def test_units_that_no_backbone_has_and_constants_of_any_size(tmp_path):
    compare(tmp_path, random_layers(3), info_of(2, 13, 9), pixels_of(2, 2, 13, 9), "-O0")


def test_filters_of_scale_0_are_left_out(tmp_path):
    layers = random_layers(3)
    for unit in layers.units:
        unit.weight.scale[1::2] = 0
    compare(tmp_path, layers, info_of(2, 13, 9), pixels_of(2, 2, 13, 9), "-O0")


@pytest.mark.parametrize("seed", range(12))
def test_no_image_leaves_32_bits(seed):
    # The reference says so itself; extreme images come nearest to it.
    layers, info = random_layers(seed), info_of(2, 11, 11)
    places = CSource(layers, info, "net", "fixed").arena.units
    pixels = torch.cat([pixels_of(2, 2, 11, 11), 255 * (pixels_of(2, 2, 11, 11) > 127).to(torch.uint8)])
    logits = WholeNumbers(layers, info, places)(pixels)
    expected = PackedNetwork(layers, info, "torch")(pixels)
    assert ((logits - expected).abs().amax(1) < 1e-2 * expected.abs().amax(1)).any()


def test_an_image_that_gives_every_worst_value_fills_32_bits_and_does_not_leave_them(tmp_path):
    def unit(inputs, outputs, stride, projection):
        weight = TernaryWeight.from_values(torch.ones(outputs, inputs, 1, 1), torch.full((outputs,), 0.7))
        rprelu = torch.tensor([[0.3], [0.1], [0.2]]).repeat(1, outputs)
        return PackedUnit(torch.full((inputs,), -1e9), weight, rprelu, stride, projection, 1.0)

    stem = PackedStem(RealWeight.round(torch.full((20, 3, 3, 3), 0.1), "float32"), torch.full((20,), 0.1), 1, False)
    summed = TernaryWeight.from_values(torch.ones(30, 20, 1, 1), torch.full((30,), 0.9))
    weighted = RealWeight.round(torch.full((40, 30, 1, 1), 0.8), "float32")
    units = unit(20, 20, 1, None), unit(20, 30, 2, summed), unit(30, 40, 2, weighted), unit(40, 40, 1, None)
    classifier = PackedClassifier(RealWeight.round(torch.ones(5, 40), "float32"), torch.zeros(5))
    layers, info = PackedLayers("Units", stem, units, classifier), info_of(3, 8, 8)
    pixels = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    reference = WholeNumbers(layers, info, CSource(layers, info, "net", "fixed").arena.units)
    reference(pixels)
    assert reference.largest > 0.9 * (1 << 28)
    compare(tmp_path, layers, info, pixels, "-O0", "-fsanitize=undefined", "-fno-sanitize-recover=all")


def test_digits_get_the_classes_of_the_packed_file_and_the_body_has_no_real_number(tmp_path):
    packed = load(pretrained_path("digits"), "torch")
    data = DigitsDataModule(image_size=packed.info.image_shape[1])
    pixels = packed.info.normalization.pixels(torch.cat([images for images, _ in data.test_batches(360)]))
    source = write_c(tmp_path, packed.layers, packed.info, "fixed")
    classes, logits = answers(run(example(tmp_path, COMPILER, "-O1"), raw(tmp_path / "image.raw", pixels)), 10)
    expected = packed(pixels)
    assert (classes == expected.argmax(1)).float().mean() >= 0.99
    assert ((logits - expected).abs().amax(1) / expected.abs().amax(1)).median() < 1e-4
    assert source.arena.size == CSource(packed.layers, packed.info, "net").arena.size
    text = re.sub(r"/\*.*?\*/", "", (tmp_path / "net.c").read_text(), flags=re.DOTALL)
    real = [line.strip() for line in text.splitlines() if re.search(r"float|double|\d\.\d|_ps\(|_pd\(", line)]
    assert real == [
        "static const float logit_step[1] = {", real[1],
        "INLINE float logit_of(int64_t sum)",
        "const float logit = (float)(uint32_t)(size >> 32) * 4294967296.0f + (float)(uint32_t)size;",
        "static int classify(const value *x, int pixels, int pixel, value *features, float *logits)",
 "int net_predict(const uint8_t *pixels, float *logits)",
    ]  # fmt: skip


def test_without_a_floating_point_unit_only_the_logits_ask_for_one(tmp_path):
    compiler = next((name for name in ("arm-none-eabi-gcc", "arm-linux-gnueabi-gcc") if shutil.which(name)), None)
    if compiler is None:
        pytest.skip("arm-none-eabi-gcc is missing; apt-get install gcc-arm-none-eabi")
    write_c(tmp_path, fold(random_network(5, width=4)), info_of(3, 8, 8), "fixed")
    target = ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=soft", "-std=c99", "-ffreestanding", "-O1")
    run(compiler, *target, "-c", "-o", tmp_path / "net.o", tmp_path / "net.c")
    tool = compiler.removesuffix("gcc") + "nm"
    symbols = subprocess.run([tool, "-u", tmp_path / "net.o"], capture_output=True, text=True, check=True).stdout
    real = {name for name in re.findall(r"__aeabi_\w+", symbols) if re.match(r"__aeabi_([fd]|\w*2[fd]\b)", name)}
    assert real <= {"__aeabi_ui2f", "__aeabi_fmul", "__aeabi_fadd"}


def test_what_cannot_be_whole_numbers_is_refused_before_a_file_is_there(tmp_path):
    with pytest.raises(InputError, match="c_arithmetic='half' is not known; choose one of float, fixed"):
        CFormat(arithmetic="half")
    layers = fold(ReActNet18(num_classes=3, width=4).eval())
    layers.units[3].rprelu[0, 1] = float("nan")
    packed = PackedNetwork(layers, info_of(3, 8, 8), "torch")
    with pytest.raises(InputError, match="c_arithmetic='fixed' needs constants that are finite"):
        CFormat(arithmetic="fixed").write(packed, tmp_path / "a", "planes")
    assert not (tmp_path / "a").exists()
