"""Packed networks in C: sums and thresholds bit by bit, whole networks, memory, compilers and sanitizers."""

import os
import re
from dataclasses import replace

import pytest
import torch
from c_networks import COMPILER, Parts, answers, example, needs_compiler, raw, run, write_c
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from packable_networks import WideUnits, random_network, scatter
from torch import nn
from torch.nn import functional as F

from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.errors import InputError
from bnfree.packing import NetworkInfo, PackedNetwork
from bnfree.packing.bits import TernaryWeight
from bnfree.packing.c_source.c_format import CFormat
from bnfree.packing.c_source.source import CSource
from bnfree.packing.c_source.tables import real, string
from bnfree.packing.folding import fold
from bnfree.packing.layers import PackedClassifier, PackedLayers, PackedStem, PackedUnit
from bnfree.packing.numba_pixel_tile import has_instruction
from bnfree.packing.real_weights import RealWeight
from bnfree.packing.unpacked_network import UnpackedUnit

pytestmark = needs_compiler
MEANS, STDS = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
SANITIZED = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
NETWORKS = {
    "ReActNet18": {"width": 6},
    "ReActNet18, pruned, real shortcuts, stem of ImageNet": {"width": 4, "density": 0.2, "stem": "imagenet"},
    "ReActNet18, pruned, binary shortcuts, grey": {
        "width": 6, "density": 0.2, "binary_shortcut": True, "in_channels": 1,
    },
    "ReActNetA": {"backbone": ReActNetA, "width": 4},
    "ReActNetA, pruned, six channels": {"backbone": ReActNetA, "width": 4, "density": 0.2, "in_channels": 6},
}  # fmt: skip

FAST = ("ReActNet18, pruned, real shortcuts, stem of ImageNet", "ReActNetA")


def info_of(channels, height, width, **known):
    shape = (channels, height, width)
    return NetworkInfo((MEANS * 2)[:channels], (STDS * 2)[:channels], shape, **known)


def pixels_of(count, *shape):
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@st.composite
def exact_units(draw):
    """One or two units of constants that make every operation exact, whatever its order; and an input likewise."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 20)))

    def among(*values, size):
        return torch.tensor(values)[torch.randint(len(values), size, generator=generator)]

    channels = first = draw(st.integers(1, 40))
    units = []
    for _ in range(draw(st.integers(1, 2))):
        stride, kernel_size = draw(st.sampled_from((1, 2))), draw(st.sampled_from((1, 3, 5)))
        kind = draw(st.sampled_from(("none", "binary", "pruned", "real")))
        out_channels = channels * draw(st.integers(1, 3)) if kind == "none" else draw(st.integers(1, 70))
        signs = among(
            *((-1, 0, 1) if draw(st.booleans()) else (-1, 1)), size=(out_channels, channels, *[kernel_size] * 2)
        )
        projection = None
        if kind == "real":
            projection = RealWeight.round(among(-0.5, 0.0, 0.25, 1.0, size=(out_channels, channels, 1, 1)), "float32")
        elif kind != "none":
            values = among(*((-1, 0, 1) if kind == "pruned" else (-1, 1)), size=(out_channels, channels, 1, 1))
            projection = TernaryWeight.from_values(values, among(0.5, 1.0, size=(out_channels,)))
        scales = (0.25, 0.5, 1.0) if draw(st.booleans()) else (0.0, 0.5)
        rprelu = [among(-1.0, -0.25, 0.5, 2.0, size=(out_channels,)) for _ in range(3)]
        units.append(
            PackedUnit(
                thresholds=among(-1.0, -0.25, 0.0, 0.125, 1.0, size=(channels,)),
                weight=TernaryWeight.from_values(signs, among(*scales, size=(out_channels,))),
                rprelu=torch.stack(rprelu),
                stride=stride,
                projection=projection,
                shortcut_scale=draw(st.sampled_from((1.0, 0.5))) if projection is None else 1.0,
            )
        )
        channels = out_channels
    height, width = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    trunk = torch.randint(-16, 17, (1, first, height, width), generator=generator) / 8
    return units, trunk


def around(units):
    """A network of these units, whose first layer only says how many channels they have."""
    channels, features = units[0].weight.shape[1], units[-1].weight.shape[0]
    stem = PackedStem(RealWeight.round(torch.ones(channels, 1, 1, 1), "float32"), torch.zeros(channels), 1, False)
    classifier = PackedClassifier(RealWeight.round(torch.ones(2, features), "float32"), torch.zeros(2))
    return PackedLayers("Units", stem, tuple(units), classifier)


@pytest.mark.parametrize(
    "flags",
    [
        ("-O1", "-march=native"),
        pytest.param(("-O1", "-mavx2"), marks=pytest.mark.slow),
        pytest.param(("-O1", "-mpopcnt"), marks=pytest.mark.slow),
        ("-O1",),
    ],
    ids=" ".join,
)
def test_units_of_any_shape_compute_every_number_as_torch_does(tmp_path, flags):
    if not runs_here(flags):
        pytest.skip(f"this processor does not have {flags[-1]}")

    @settings(
        max_examples=int(os.environ.get("C_EXAMPLES", "3")),
        # Each example runs the compiler, so a failing one is not made smaller.
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(exact_units())
    def compare(drawn):
        units, trunk = drawn
        # A library that has been loaded stays; the next one needs another name.
        folder = tmp_path / str(sum(1 for _ in tmp_path.iterdir()))
        layers = around(units)
        parts = Parts(folder, layers, info_of(1, *trunk.shape[2:]), *flags)
        expected = nn.Sequential(*(UnpackedUnit(unit) for unit in units))(trunk)
        assert torch.equal(parts.units(trunk), expected)

    compare()


def test_filters_of_scale_0_take_no_weights_and_change_no_number(tmp_path):
    generator = torch.Generator().manual_seed(3)

    def unit(filters, pruned=False):
        scale = torch.zeros(36)
        scale[list(filters)] = 0.5
        values = torch.randint(-1, 2, (36, 36, 3, 3), generator=generator)
        values = values if pruned else 2 * (values > 0) - 1
        constants = torch.randint(-4, 5, (4, 36), generator=generator) / 4
        return PackedUnit(constants[0], TernaryWeight.from_values(values, scale), constants[1:], 1, None, 1.0)

    # A block without a filter, blocks with some and with all, a unit without any, and one with all.
    units = [unit(range(16, 36)), unit(range(0, 36, 3), True), unit([]), unit(range(36)), unit([35])]
    trunk = torch.randint(-16, 17, (1, 36, 5, 4), generator=generator) / 8
    layers, info = around(units), info_of(1, 5, 4)
    parts = Parts(tmp_path, layers, info, "-O0")
    assert torch.equal(parts.units(trunk), nn.Sequential(*(UnpackedUnit(unit) for unit in units))(trunk))
    a_filter, planes = 9 * 2 * 4, 20 + 2 * 12 + 0 + 36 + 1
    numbers_of_filters, beyond = 3 * 2 * 5, 16 * 4 * 6
    assert parts.source.sizes["binary weights"] == a_filter * planes + numbers_of_filters + beyond
    whole = around([unit(range(36)) for _ in range(5)])
    assert CSource(whole, info, "net").sizes["binary weights"] == a_filter * 5 * 48


def test_sums_of_taps_outside_of_the_image_fit(tmp_path):
    # Six of nine taps are beside the image, and what is there for -1 is taken back: 15 times the channels, above 2^15.
    channels = 2200
    weight = TernaryWeight.from_values(torch.ones(1, channels, 3, 3), torch.ones(1))
    shortcut = TernaryWeight.from_values(torch.ones(1, channels, 1, 1), torch.zeros(1))
    unit = PackedUnit(torch.zeros(channels), weight, torch.tensor([[0.0], [1.0], [0.0]]), 1, shortcut, 1.0)
    parts = Parts(tmp_path, around([unit]), info_of(1, 3, 1), "-O0")
    sums = parts.units(torch.ones(1, channels, 3, 1)).flatten()
    assert sums.tolist() == [2 * channels, 3 * channels, 2 * channels]


def test_no_name_in_a_packed_file_ends_a_comment():
    layers = replace(fold(random_network(0, width=4)), architecture="A */ int injected; /* \n B")
    source = CSource(layers, info_of(3, 8, 8, source_run="b */ int injected; /*"), "net")
    for name, text in source.files().items():
        assert "injected" not in re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL), name


def runs_here(flags):
    if "-mavx2" not in flags:
        return True
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


@pytest.mark.parametrize("channels", [1, 3, 6])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_the_first_layer_on_8_bit_pixels_is_the_real_convolution_of_normalised_ones(tmp_path, channels, stem):
    layers = fold(random_network(3, width=5, in_channels=channels, stem=stem))
    layers = replace(layers, stem=replace(layers.stem, bias=torch.linspace(-1, 1, 5)))
    info, pixels = info_of(channels, 19, 14), pixels_of(1, channels, 19, 14)
    computed = Parts(tmp_path, layers, info, "-O1").stem(pixels)
    zero, factor = (values.view(-1, 1, 1) for values in (info.normalization.zero(), info.normalization.factor()))
    weight, first = layers.stem.weight.expand().double(), layers.stem
    expected = F.conv2d(
        (pixels.double() - zero) * factor, weight, first.bias.double(), first.stride, weight.shape[-1] // 2
    )
    expected = F.max_pool2d(expected, 3, 2, 1) if first.pool else expected
    assert computed.shape == expected.shape
    assert (computed - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.skipif(not has_instruction(), reason="the compiled engine sums 8-bit pixels only with AVX-512 VNNI")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in FAST else pytest.mark.slow)
        for name in NETWORKS
        if "six channels" not in name
    ],
)
def test_whole_networks_give_the_classes_and_logits_of_the_compiled_engine(tmp_path, name):
    network = random_network(5, **NETWORKS[name])
    channels = network.in_channels
    info, pixels = info_of(channels, 33, 31), pixels_of(24, channels, 33, 31)
    packed = PackedNetwork(fold(network), info, "numba")
    write_c(tmp_path, packed.layers, info)
    program = example(tmp_path, COMPILER, "-O2", "-march=native")
    classes, logits = answers(run(program, raw(tmp_path / "image.raw", pixels)), packed.num_classes)
    expected = packed(pixels)
    assert torch.equal(classes, expected.argmax(1))
    assert ((logits - expected).abs() <= 1e-5 * expected.abs().amax(1, keepdim=True)).all()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "left_out"), [*((name, 0) for name in NETWORKS), (FAST[0], 3), (FAST[1], 2)])
def test_compilers_have_no_warning_and_sanitizers_find_nothing(tmp_path, name, left_out):
    network = random_network(5, **NETWORKS[name])
    channels = network.in_channels
    info, pixels = (
        info_of(channels, 17, 16, class_names=('"a\\\n', "%d??/", "é", "", "*/")),
        pixels_of(3, channels, 17, 16),
    )
    layers = fold(network)
    for unit in layers.units if left_out else ():
        unit.weight.scale[::left_out] = 0
    write_c(tmp_path, layers, info)
    image = raw(tmp_path / "image.raw", pixels)
    native = run(example(tmp_path, COMPILER, *SANITIZED, "-march=native"), image)
    # The same operations in the same order, on another kind of processor.
    assert run(example(tmp_path, COMPILER, *SANITIZED), image) == native
    classes, logits = answers(native.replace('"a\\\n', "").replace("é", ""), 5)
    assert torch.equal(classes, logits.argmax(1))
    # An activation on its threshold may turn over, so not every image needs to agree with torch.
    expected = PackedNetwork(layers, info, "torch")(pixels)
    assert ((logits - expected).abs().amax(1) <= 1e-4 * expected.abs().amax(1)).any()


def test_wide_networks_repeat_and_project_whole_words(tmp_path):
    layers = fold(scatter(WideUnits("cifar"), 2))
    parts = Parts(tmp_path, layers, info_of(3, 9, 12), "-O1", "-march=native")
    trunk = parts.stem(pixels_of(1, 3, 9, 12))
    # The order of sums differs in the projection alone, behind which nothing is compared with a threshold.
    expected = nn.Sequential(*(UnpackedUnit(unit) for unit in layers.units))(trunk)
    assert (parts.units(trunk) - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_memory_is_what_the_trunk_and_two_layers_of_signs_take():
    source = CSource(fold(random_network(0, width=16)), info_of(3, 32, 32), "net")
    trunk, signs = 32 * 32 * 16 * 4, 32 * (32 + 2) * 4
    pooled_row = 16 * (16 + 32) * 4
    assert source.arena.size == trunk + 2 * signs + pooled_row
    assert sum(source.sizes.values()) <= 250_000


@pytest.mark.parametrize("number", [0.1, 1e-45, 3.4028235e38, -7.0, 1e-5, 16777216.0])
def test_float32_numbers_and_strings_come_back_as_they_were(tmp_path, number):
    text = 'a"\\?%\té\n??/'
    (tmp_path / "a.c").write_text(
        f'#include <stdio.h>\nint main(void) {{ printf("%a|%s", (double){real(number)}, {string(text)}); return 0; }}\n'
    )
    run(COMPILER, "-o", tmp_path / "a", tmp_path / "a.c")
    printed, said = run(tmp_path / "a").split("|")
    assert float.fromhex(printed) == torch.tensor(number).item()
    assert said == text


def test_what_cannot_be_written_is_refused_before_a_file_is_there(tmp_path):
    layers = fold(random_network(0, width=4))
    packed = PackedNetwork(layers, NetworkInfo(), "torch")
    with pytest.raises(InputError, match="format='c' needs the images' mean, std and shape"):
        CFormat().write(packed, tmp_path / "a", "planes")
    packed = PackedNetwork(layers, info_of(3, 32, 32), "torch")
    needed = CSource(layers, packed.info, "a").arena.size
    with pytest.raises(InputError, match=f"ram_limit={needed - 1} is too little: the network takes {needed} bytes"):
        CFormat(ram_limit=needed - 1).write(packed, tmp_path / "a", "planes")
    with pytest.raises(InputError, match="has none"):
        CFormat().write(PackedNetwork(replace(layers, units=()), packed.info, "torch"), tmp_path / "a", "planes")
    with pytest.raises(InputError, match="c_name='3d' must be a word"):
        CFormat(name="3d")
    assert not (tmp_path / "a").exists()


def test_what_is_read_back_takes_normalised_images_and_8_bit_ones(tmp_path):
    network = ReActNet18(num_classes=3, width=4)
    packed = PackedNetwork(fold(network.eval()), info_of(3, 8, 8), "torch")
    kind = CFormat()
    kind.write(packed, tmp_path / "main", "planes")
    assert [file.name for file in kind.files(tmp_path / "main")][:2] == ["network_main.c", "network_main.h"]
    assert all(file.is_file() for file in kind.files(tmp_path / "main"))
    compiled, pixels = kind.read(tmp_path / "main", "auto"), pixels_of(2, 3, 8, 8)
    assert torch.equal(compiled(packed.info.normalization(pixels)), compiled(pixels))
    assert "network_main_predict" in dict(kind.facts(packed, tmp_path / "main"))["function"]
    with pytest.raises(InputError, match="made of 8-bit ones"):
        compiled(torch.randn(2, 3, 8, 8))
    with pytest.raises(InputError, match=r"the C takes \(N, 3, 8, 8\)"):
        compiled(pixels[..., 1:])
