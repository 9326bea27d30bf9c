"""Operations, parameters, density and stored bits: published counts, closed forms, another counter."""

from __future__ import annotations

import copy
import time

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import mobilenet_v2, resnet18

from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.backbones.reactnet_a import BLOCKS
from bnfree.convolution import BinaryConv2d
from bnfree.costs import count_ops
from bnfree.errors import InputError
from bnfree.packing.file_layout import store
from bnfree.packing.folding import fold


def reactnet_c():
    """ReActNet-C: the 1x1 convolutions of the five widening blocks are real."""
    network = ReActNetA()
    widening = [block[1].convolution for block in network.body if block[1].repeats > 1]
    assert len(widening) == 5
    for convolution in widening:
        convolution.binary_weights = False
    return network


def agrees(value, digits):
    """Whether a number is the published one to all digits that are given."""
    places = len(digits.partition("e")[0].replace(".", "")) - 1
    return float(f"{value:.{places}e}") == float(digits)


@pytest.mark.parametrize(
    ("build", "size", "bops", "flops", "ops"),
    [
        pytest.param(ReActNetA, 224, "4.817e9", "1.186e7", "8.7e7", id="A"),
        pytest.param(lambda: ReActNetA(10), 32, "9.83e7", "2.3e5", "1.77e6", id="A-32"),
        pytest.param(reactnet_c, 224, "4.69e9", "1.40e8", "2.14e8", id="C", marks=pytest.mark.slow),
        pytest.param(lambda: ReActNet18(1000, stem="imagenet"), 224, "1.676e9", "1.378e8", "1.64e8", id="18"),
        pytest.param(
            lambda: ReActNet18(1000, stem="imagenet", reference=True), 224, "1.696e9", "1.185e8", "1.45e8",
            id="18-code", marks=pytest.mark.slow,
        ),
        pytest.param(ReActNet18, 32, "5.47e8", "8.07e6", "1.66e7", id="18-32"),
        pytest.param(lambda: ReActNet18(reference=True), 32, "5.54e8", "1.77e6", "1.04e7", id="18-32-code"),
    ],
)  # fmt: skip
def test_published_counts(build, size, bops, flops, ops):
    cost = count_ops(build(), (3, size, size))
    assert agrees(cost.bops, bops), cost.bops
    assert agrees(cost.flops, flops), cost.flops
    assert agrees(cost.ops, ops), cost.ops


@pytest.mark.parametrize("norm", ["bn_free", "batch_norm", "none"])
@pytest.mark.parametrize(("width", "size", "classes"), [(4, 32, 10), (6, 21, 3)])
def test_closed_form_of_reactnet18(norm, width, size, classes):
    network = ReActNet18(classes, norm, width=width, in_channels=2)
    convolutions, projections, side, channels = 4 * 9 * width**2 * size**2, 0, size, width
    for _ in range(3):
        side = (side + 1) // 2
        convolutions += 9 * (channels * 2 * channels + 3 * (2 * channels) ** 2) * side**2
        projections += channels * 2 * channels * side**2
        channels *= 2
    real = 2 * 9 * width * size**2 + 8 * width * classes
    cost = count_ops(network, (2, size, size))
    assert (cost.bops, cost.flops) == (convolutions, real + projections)
    assert cost.bops_on_real_input == 0
    network = ReActNet18(classes, norm, width=width, in_channels=2, binary_shortcut=True)
    binary_shortcut = count_ops(network, (2, size, size))
    assert (binary_shortcut.bops, binary_shortcut.flops) == (convolutions + projections, real)
    assert binary_shortcut.bops_on_real_input == projections
    step1 = count_ops(ReActNet18(classes, norm, False, width=width, in_channels=2), (2, size, size))
    assert (step1.bops, step1.flops) == (0, convolutions + projections + real)
    assert sum(row.flops for row in step1.rows if row.binary_input) == convolutions


@pytest.mark.parametrize(("width", "size", "stem"), [(2, 64, "imagenet"), (3, 40, "cifar")])
def test_closed_form_of_reactnet_a(width, size, stem):
    side, channels, bops = (size // 2 if stem == "imagenet" else size), width, 0
    flops = 27 * width * side**2 + 32 * width * 7
    for multiple, stride in BLOCKS:
        side = -(-side // stride)
        bops += (9 * channels**2 + channels * width * multiple) * side**2
        channels = width * multiple
    cost = count_ops(ReActNetA(7, width=width, stem=stem), (3, size, size))
    assert (cost.bops, cost.flops, cost.bops_on_real_input) == (bops, flops, 0)
    assert cost.ops == bops / 64 + flops


class Mixture(nn.Module):
    """Convolutions of one to three dimensions, grouped, dilated and transposed, and a linear layer over positions."""

    def __init__(self):
        super().__init__()
        self.grouped = nn.Conv2d(4, 6, (3, 1), stride=(2, 1), groups=2, dilation=2)
        self.transposed = nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2)
        self.line = nn.Conv1d(4, 3, 5, padding=2)
        self.volume = nn.Conv3d(1, 2, 3)
        self.linear = nn.Linear(5, 2, bias=False)

    def forward(self, images):
        x = self.transposed(self.grouped(images))
        x = self.line(x.flatten(2))
        return self.linear(self.volume(x[:, None, :, :49].reshape(1, 1, 3, 7, 7)))


@pytest.mark.parametrize(
    ("build", "shape"), [(resnet18, (3, 96, 64)), (mobilenet_v2, (3, 64, 64)), (Mixture, (4, 12, 9))]
)
def test_real_networks_agree_with_torchs_counter(build, shape):
    network = build().eval()
    cost = count_ops(network, shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, *shape))
    assert cost.bops == 0
    assert 2 * cost.flops == counter.get_total_flops()
    assert (cost.binary_params, cost.uncounted) == (0, ())
    assert cost.real_params == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.slow
def test_reactnet_a_at_224_takes_less_than_three_seconds():
    network = ReActNetA()
    start = time.process_time()
    count_ops(network, (3, 224, 224))
    assert time.process_time() - start < 3


def test_rows_say_what_a_layer_is():
    rows = {row.name: row for row in count_ops(ReActNet18(width=4, binary_shortcut=True), (3, 32, 24)).rows}
    stem, unit, shortcut = (rows[n] for n in ("stem.convolution", "body.1.0.convolution", "body.1.0.projection"))
    assert (stem.input_shape, stem.output_shape, stem.kernel_size) == ((3, 32, 24), (4, 32, 24), (3, 3))
    assert (unit.input_shape, unit.output_shape, unit.stride) == ((4, 32, 24), (8, 16, 12), (2, 2))
    assert [(r.binary_weights, r.binary_input) for r in (stem, unit, shortcut)] == [
        (False, False), (True, True), (True, False)
    ]  # fmt: skip
    assert (unit.weights, unit.binary_params, unit.real_params) == (288, 288, 8)
    assert (rows["classifier"].kind, rows["classifier"].input_shape) == ("linear", (32,))
    assert list(rows)[-1] == "other parameters"


@pytest.mark.parametrize("network", [ReActNet18(width=4, norm="batch_norm"), ReActNetA(10, width=2), resnet18()])
def test_totals_are_sums_and_no_parameter_is_forgotten(network):
    cost = count_ops(network, (3, 32, 32))
    for name in ("bops", "flops", "ops", "binary_params", "real_params"):
        assert getattr(cost, name) == sum(getattr(row, name) for row in cost.rows)
    assert cost.binary_params + cost.real_params == sum(parameter.numel() for parameter in network.parameters())
    assert cost.bytes_packed == -(-sum(row.bits for row in cost.rows) // 8)


def vectors_of_reactnet18(width):
    """Numbers per channel in the units of a ReActNet-18: a threshold in front, and scale, two shifts and a slope."""
    outputs = [width * 2**stage for stage in range(4) for _ in range(4)]
    inputs = [width, *outputs[:-1]]
    return sum(inputs) + 4 * sum(outputs)


def test_stored_bits_of_reactnet18():
    width, weights = 4, 9 * 16 * (4 + (2 + 3 * 4) + (8 + 3 * 16) + (32 + 3 * 64))
    real = 27 * width + 10 * (8 * width + 1)
    shortcuts = 16 * (2 + 8 + 32)
    for norm, beta, extra in (("bn_free", 16, 0), ("none", 0, 0), ("batch_norm", 0, 2 * (4 + 4 * 60 + 56))):
        numbers = vectors_of_reactnet18(width) + beta + extra
        cost = count_ops(ReActNet18(norm=norm, width=width), (3, 32, 32))
        assert cost.binary_params == weights
        assert sum(row.bits for row in cost.rows) == weights + 16 * (real + shortcuts) + 32 * numbers
        binary = count_ops(ReActNet18(norm=norm, width=width, binary_shortcut=True), (3, 32, 32))
        scales = 8 + 16 + 32
        assert sum(row.bits for row in binary.rows) == weights + shortcuts + 16 * real + 32 * (numbers + scales)


@pytest.mark.parametrize(
    ("network", "size", "packed", "float32"),
    [(ReActNet18(10, reference=True), 32, 1.50e6, "4.47e7"), (ReActNetA(1000, reference=True), 32, 5.9e6, "1.17e8")],
    ids=["18", "A"],
)
def test_size_of_the_published_networks(network, size, packed, float32):
    cost = count_ops(network, (3, size, size))
    assert cost.binary_params / 8 < cost.bytes_packed <= packed
    assert agrees(cost.bytes_float32, float32)
    weights = sum(p.numel() * 4 for p in network.parameters())
    assert 0 <= cost.bytes_float32 - weights <= 4 * 26


def test_bits_of_real_weights():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    weights = 3 * 4 * 9 + 4 + 16 * 2 + 2
    assert count_ops(network, (3, 4, 4)).bytes_packed == weights * 2
    assert count_ops(network, (3, 4, 4), real_bits=32).bytes_packed == count_ops(network, (3, 4, 4)).bytes_float32


@pytest.mark.parametrize("binary", [True, False])
def test_masks_are_density_and_a_plane_of_bits(binary):
    dense, pruned = (ReActNet18(width=4, binary_weights=binary) for _ in range(2))
    layer = pruned.body[0][1].convolution
    mask = torch.zeros_like(layer.weight, dtype=torch.bool)
    mask.view(-1)[::4] = True
    layer.set_mask(mask)
    loaded = ReActNet18(width=4, binary_weights=binary)
    loaded.load_state_dict(pruned.state_dict())
    before, after = (count_ops(network, (3, 16, 16)) for network in (dense, loaded))
    row = next(row for row in after.rows if row.name == "body.0.1.convolution")
    assert row.density == 0.25
    assert (after.ops, after.binary_params, after.real_params) == (before.ops, before.binary_params, before.real_params)
    assert 8 * (after.bytes_packed - before.bytes_packed) == (144 if binary else 0)
    weights = sum(row.weights for row in after.rows)
    assert before.density == 1
    assert after.density == pytest.approx(1 - 108 / weights)


@pytest.mark.parametrize("pruned", ["nothing", "a weight", "filters", "filters and a weight", "everything"])
def test_bits_of_masks_are_those_of_the_packed_file(pruned):
    network = ReActNet18(width=4)
    layer = network.body[0][1].convolution
    mask = torch.ones_like(layer.weight, dtype=torch.bool)
    if "filters" in pruned:
        mask[1:3] = False
    if "a weight" in pruned:
        mask[0, 2, 1, 1] = False
    if pruned == "everything":
        mask.zero_()
    dense = count_ops(network, (3, 16, 16))
    layer.set_mask(mask)
    rows = {row.name: row for row in count_ops(network, (3, 16, 16)).rows}
    before = {row.name: row for row in dense.rows}
    _, tensors = store(fold(network), "planes")
    packed = {name: tensor for name, tensor in tensors.items() if name.startswith("units.1.")}
    bits = sum(
        8 * packed[f"units.1.{plane}"].numel() for plane in ("signs", "survivors") if f"units.1.{plane}" in packed
    )
    bits += 32 * packed["units.1.scale"].numel() + (4 if "units.1.filters" in packed else 0)
    # Whole bytes in the file.
    assert bits - 16 < rows["body.0.1.convolution"].bits <= bits
    assert {name: row.bits for name, row in rows.items() if name != "body.0.1.convolution"} == {
        name: row.bits for name, row in before.items() if name != "body.0.1.convolution"
    }


def test_density_is_that_of_the_effective_weight():
    layer = BinaryConv2d(4, 4, 3)
    with torch.no_grad():
        layer.weight[:, :2] = 0
    assert count_ops(layer, (4, 5, 5)).density == 1
    plain = nn.Conv2d(4, 4, 3, bias=False)
    prune.random_unstructured(plain, "weight", amount=36)
    assert count_ops(plain, (4, 5, 5)).density == 0.75


def test_the_model_is_left_as_it_was():
    network = nn.Sequential(
        ReActNet18(4, "batch_norm", width=4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2)
    ).train()  # fmt: skip
    network[1].eval()
    network(torch.randn(3, 3, 16, 16)).sum().backward()
    state, modes = copy.deepcopy(network.state_dict()), [module.training for module in network.modules()]
    gradients = [parameter.grad.clone() for parameter in network.parameters()]
    random = torch.get_rng_state()
    count_ops(network, (3, 16, 16))
    with pytest.raises(InputError):
        count_ops(network, (5, 16, 16))
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(p.grad, g) for p, g in zip(network.parameters(), gradients, strict=True))
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_hooks for module in network.modules())


def test_repeated_and_shared_layers_are_counted_each_time_and_stored_once():
    layer = nn.Conv2d(3, 3, 1, bias=False)
    once, thrice = (count_ops(nn.Sequential(*[layer] * n), (3, 2, 2)) for n in (1, 3))
    assert thrice.flops == 3 * once.flops == 3 * 36
    assert thrice.bytes_packed == once.bytes_packed == 18
    tied = nn.Sequential(layer, nn.Conv2d(3, 3, 1, bias=False))
    tied[1].weight = layer.weight
    cost = count_ops(tied, (3, 2, 2))
    assert (cost.flops, cost.real_params, cost.bytes_packed) == (72, 9, 18)


class OwnSign(nn.Conv2d):
    binary_weights = True

    def effective_weight(self):
        return torch.where(self.weight >= 0, 1.0, -1.0)


class ToSign(nn.Module):
    def forward(self, x):
        return torch.where(x > 0.5, 1.0, -1.0)


@pytest.mark.parametrize("binary_input", [True, False])
def test_a_convolution_of_ones_own(binary_input):
    layer = OwnSign(2, 4, 1, bias=False)
    network = nn.Sequential(ToSign(), layer) if binary_input else layer
    cost = count_ops(network, (2, 3, 3))
    assert (cost.bops, cost.flops, cost.binary_params, cost.bytes_packed) == (72, 0, 8, 1 + 4 * 4)
    assert cost.bops_on_real_input == (0 if binary_input else 72)


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(3, 1, batch_first=True)
        self.unused = nn.Conv2d(3, 3, 1)
        self.scale = nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, x):
        tokens = (x * self.scale).flatten(2).mT
        return self.attention(tokens, tokens, tokens)[0]


def test_what_is_not_counted_is_named():
    cost = count_ops(Attentive(), (3, 2, 2))
    assert cost.flops == 0
    assert set(cost.uncounted) == {"attention.in_proj_weight", "attention.out_proj", "unused"}
    assert next(row for row in cost.rows if row.name == "unused").output_shape == ()


@pytest.mark.slow
def test_a_compiled_network_keeps_its_names():
    network = ReActNet18(width=4)
    assert count_ops(torch.compile(network), (3, 16, 16)) == count_ops(network, (3, 16, 16))


def test_half_precision_and_a_network_without_parameters():
    assert count_ops(ReActNet18(width=4).to(torch.bfloat16), (3, 16, 16)).bops > 0
    empty = count_ops(nn.Flatten(), (3, 2, 2))
    assert (empty.rows, empty.ops, empty.bytes_packed, empty.density) == ((), 0, 0, 1)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((32, 32), "image_shape=(32, 32) must be three positive integers"),
        ((3, 0, 32), "image_shape=(3, 0, 32) must be"),
        ((3, 8.0, 8), "must be three positive integers"),
        (32, "image_shape=32 must be"),
        ((1, 8, 8), "image_shape=(1, 8, 8) does not go through ReActNet18 (Given groups=1"),
    ],
)
def test_shapes_that_do_not_do(shape, said):
    with pytest.raises(InputError) as error:
        count_ops(ReActNet18(width=4), shape)
    assert said in str(error.value)
