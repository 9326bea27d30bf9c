"""Packed networks against the networks that they were made from."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from packable_networks import TwoUnits, WideUnits, images, random_network, scatter

from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.calibration import calibrate
from bnfree.errors import InputError
from bnfree.packing import NetworkInfo, compare, load, pack

networks = st.fixed_dictionaries(
    {
        "backbone": st.sampled_from([ReActNet18, ReActNetA]),
        "norm": st.sampled_from(["bn_free", "batch_norm", "none"]),
        "stem": st.sampled_from(["cifar", "imagenet"]),
        "width": st.integers(2, 5),
        "alpha": st.sampled_from([None, 0.2]),
        "in_channels": st.sampled_from([1, 3]),
        "reference": st.booleans(),
        "binary_shortcut": st.booleans(),
        "density": st.sampled_from([None, 0.8, 0.3]),
    }
)
sizes = st.tuples(st.integers(1, 3), st.integers(1, 17), st.integers(1, 17))


def agree(options, size, seed, path):
    """Packed by each engine and read back, against the trained network; returns the comparison."""
    network = random_network(seed, **dict(options))
    batch, height, width = size
    x = images(seed, batch, options["in_channels"], height, width)
    packed = pack(network, "float32", engine="numba")
    result = compare(network, packed, x)
    assert result.unexplained == 0, result
    packed.save(path, masks="digits" if seed % 2 else "planes")
    assert torch.equal(load(path, "numba")(x), packed(x))
    plain = compare(network, load(path, "torch"), x)
    assert plain.unexplained == 0, plain
    return result


# Where a size is 1, many strides mean the same.
NARROW = {"backbone": ReActNet18, "in_channels": 1, "width": 2, "binary_shortcut": False}


@example(options=NARROW, size=(1, 1, 6), seed=1)
@example(options=NARROW, size=(2, 6, 1), seed=1)
@given(options=networks, size=sizes, seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=8)
def test_logits_are_those_of_the_trained_network(tmp_path_factory, options, size, seed):
    agree(options, size, seed, tmp_path_factory.getbasetemp() / "network.safetensors")


@pytest.mark.slow
@given(options=networks, size=sizes, seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=200)
def test_logits_are_those_of_the_trained_network_often(tmp_path_factory, options, size, seed):
    agree(options, size, seed, tmp_path_factory.getbasetemp() / "network.safetensors")


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("density", [None, 0.7])
def test_whole_words_of_channels(stem, density):
    network = scatter(WideUnits(stem), density=density)
    packed = pack(network, "float32", engine="numba")
    for size in ((1, 32, 32), (3, 29, 37)):
        result = compare(network, packed, images(size[1], size[0], 3, *size[1:]))
        assert result.unexplained == 0
        assert result.near_threshold > 0 or result.largest_relative_difference < 1e-5


def test_memory_is_kept_for_some_sizes_and_found_again():
    packed = pack(random_network(0, width=4), engine="numba")
    batches = [images(size, 1 + size % 2, 3, size, 9) for size in range(3, 11)]
    logits = [packed(x) for x in batches]
    for x, before in zip(batches[::-1], logits[::-1], strict=True):
        assert torch.equal(packed(x), before)


def test_threads_compute_at_once():
    packed = pack(random_network(0, width=4), engine="numba")
    batches = [images(seed, 2, 3, 12, 12) for seed in range(40)]
    expected = [packed(x) for x in batches]
    with ThreadPoolExecutor(4) as pool:
        assert all(map(torch.equal, pool.map(packed, batches), expected))


def test_large_batches_are_computed_in_parts():
    packed = pack(random_network(0, width=4), engine="numba")
    x = images(0, 40, 3, 128, 128)
    logits = packed(x)
    assert torch.allclose(logits[37:], packed(x[37:]), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", [ReActNet18, ReActNetA])
def test_a_calibrated_network_keeps_its_classes(backbone):
    network = random_network(1, backbone=backbone, width=8)
    calibrate(network, images(2, 32, 3, 16, 16), full=True)
    result = compare(network, pack(network, "float32"), images(3, 16, 3, 16, 16))
    assert result.near_threshold == 0
    assert result.agreement == 1
    assert result.largest_relative_difference < 1e-5


@pytest.mark.parametrize("precision", ["float16", "int8"])
@pytest.mark.parametrize("binary_shortcut", [True, False])
def test_rounded_real_layers_are_the_only_difference(precision, binary_shortcut):
    network = scatter(TwoUnits(width=6, binary_shortcut=binary_shortcut))
    packed = pack(network, precision, convolution_precision=precision)
    rounded = copy.deepcopy(network)
    projection = [] if binary_shortcut else [rounded.body[1].projection]
    factors = [1.0, *(rounded.body[1].beta.item() for _ in projection)]
    for layer, factor in zip([rounded.stem.convolution, *projection], factors, strict=True):
        weight = round_weight(layer.effective_weight().detach() * factor, precision) / factor
        layer.standardize, layer.gain = False, None
        layer.weight.data.copy_(weight)
    rounded.classifier.weight.data.copy_(round_weight(rounded.classifier.weight.detach(), precision))
    x = images(0, 8, 2, 9, 9)
    result = compare(rounded, packed, x)
    assert result.near_threshold == 0
    assert result.largest_relative_difference < 1e-5
    assert compare(network, packed, x).largest_relative_difference > 1e-5


@pytest.mark.parametrize("binary_shortcut", [True, False])
def test_a_half_precision_classifier_keeps_every_sign(binary_shortcut):
    network, x = random_network(0, width=4, binary_shortcut=binary_shortcut), images(0, 16, 3, 12, 12)
    packed = pack(network)
    assert packed.layers.stem.weight.values.dtype == torch.float32
    assert packed.layers.classifier.weight.values.dtype == torch.float16
    result = compare(network, packed, x)
    assert 0 < result.largest_relative_difference < 1e-3
    assert (result.agreement, result.near_threshold, result.unexplained) == (1, 0, 0)


def round_weight(weight, precision):
    if precision == "float16":
        return weight.half().float()
    step = weight.double().flatten(1).abs().amax(1).float().double().div(127).view(-1, *[1] * (weight.dim() - 1))
    return (weight.double() / step).round().mul(step).float()


def test_the_result_depends_on_the_image_alone():
    packed = pack(random_network(0, width=4))
    x = images(0, 3, 3, 9, 12)
    logits = packed(x)
    assert logits.shape == (3, 5)
    assert not logits.requires_grad
    for index in range(3):
        assert torch.allclose(packed(x[index : index + 1]), logits[index : index + 1], rtol=1e-5, atol=1e-5)
    assert torch.equal(packed(x.contiguous(memory_format=torch.channels_last)), logits)
    assert torch.equal(packed(x.double()), logits)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(packed(x), logits)


@pytest.mark.parametrize("engine", ["torch", "numba"])
def test_an_empty_batch_gives_no_logits(engine):
    packed = pack(scatter(TwoUnits()), engine=engine)
    assert packed(torch.zeros(0, 2, 8, 8)).shape == (0, 4)


@pytest.mark.parametrize("x", [torch.zeros(2, 8, 8), torch.zeros(1, 3, 8, 8), torch.zeros(1, 2, 0, 8)])
def test_images_of_another_shape_are_refused(x):
    with pytest.raises(InputError, match=r"images has shape .* takes \(N, 2, H, W\)"):
        pack(scatter(TwoUnits()))(x)


def test_images_that_are_not_normalised_are_refused():
    with pytest.raises(InputError, match=r"images is torch.uint8, .* mean and std; normalise images to floating point"):
        pack(scatter(TwoUnits()))(torch.zeros(1, 2, 8, 8, dtype=torch.uint8))
    with pytest.raises(InputError, match=r"images is torch.int32 .* floating point, or 8-bit ones"):
        pack(scatter(TwoUnits()))(torch.zeros(1, 2, 8, 8, dtype=torch.int32))


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"mean": (0.5,)}, "mean=.* must be 2 numbers"),
        ({"mean": 0.5}, "mean=0.5"),
        ({"std": (0.5, 0.0)}, "std=.* must be 2 positive numbers"),
        ({"mean": (0.5, float("nan"))}, "mean="),
        ({"image_shape": (3, 32, 32)}, "image_shape=.* with C=2"),
        ({"image_shape": (2, 32)}, "image_shape="),
        ({"resize": 7, "image_shape": (2, 8, 8)}, "resize=7 must be an integer and at least the sizes"),
        ({"resize": 8.0}, "resize=8.0 must be an integer"),
        ({"class_names": ("a", "b")}, "class_names has 2 names, the network 4 classes"),
        ({"class_names": "abcd"}, "class_names must be a list of strings"),
        ({"source_run": 3}, "source_run=3"),
        ({"accuracy": 92.08}, "accuracy=92.08 must be a fraction"),
    ],
)
def test_info_that_does_not_fit_is_refused(info, message):
    with pytest.raises(InputError, match=message):
        pack(scatter(TwoUnits()), info=NetworkInfo(**info))


def test_printing_names_what_it_is():
    assert "TwoUnits, 2 units, in_channels=2, num_classes=4, engine=torch" in repr(
        pack(scatter(TwoUnits()), engine="torch")
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "precision", "limit", "bits"),
    [
        (lambda: ReActNet18(10, binary_shortcut=True), "float16", 1.50e6, 1.395e6),
        (lambda: ReActNet18(10), "float16", 2.17e6, 1.374e6),
        (ReActNetA, "float16", 5.9e6, 3.532e6),
        (ReActNetA, "int8", 4.9e6, 3.532e6),
    ],
)
def test_size_on_disk(tmp_path, build, precision, limit, bits):
    torch.manual_seed(0)
    network, path = build(), tmp_path / "network.safetensors"
    names = tuple(f"class number {index}" for index in range(network.num_classes))
    packed = pack(network, precision, info=NetworkInfo(class_names=names))
    packed.save(path)
    assert bits < path.stat().st_size <= limit
    stored = sum(unit.weight.signs.numel() for unit in packed.layers.units)
    stored += sum(u.projection.signs.numel() for u in packed.layers.units if hasattr(u.projection, "signs"))
    assert stored == pytest.approx(bits, rel=1e-3)


@pytest.mark.slow
def test_digits_are_smaller_than_planes_and_planes_than_bytes(tmp_path):
    network = random_network(0, width=32, density=0.5)
    packed = pack(network)
    sizes = {}
    for masks in ("planes", "digits"):
        packed.save(tmp_path / masks, masks=masks)
        sizes[masks] = (tmp_path / masks).stat().st_size
    weights = sum(np.prod(unit.weight.shape) for unit in packed.layers.units)
    assert (sizes["planes"] - sizes["digits"]) / weights == pytest.approx(0.4 / 8, rel=0.01)
