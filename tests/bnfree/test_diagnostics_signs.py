import pytest
import torch

from bnfree.backbones import ReActNet18
from bnfree.convolution import BinaryConv2d
from bnfree.diagnostics import binary_layers, count_flips, pack_signs, unpack_signs, weight_signs


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def signs_by_hand(layer):
    """One weight after the other, in float64, from the formula of scaled weight standardisation."""
    signs = torch.zeros(layer.weight.shape, dtype=torch.int8)
    mask = torch.ones_like(signs) if layer.mask is None else layer.mask
    for o, row in enumerate(layer.weight.detach().double()):
        survivors = row[mask[o] != 0]
        mean = survivors.mean() if layer.standardize and len(survivors) > 1 else 0.0
        gain = 1.0 if layer.gain is None else layer.gain[o].item()
        for index in mask[o].nonzero().tolist():
            signs[(o, *index)] = 1 if (row[tuple(index)] - mean) * gain >= 0 else -1
    return signs


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_signs_are_those_of_the_effective_weight(binary, standardize, masked):
    layer = BinaryConv2d(3, 4, 3, binary_weights=binary, standardize=standardize)
    with torch.no_grad():
        layer.weight += 0.2
        if layer.gain is not None:
            layer.gain[1] = -0.5
    if masked:
        layer.set_mask(torch.rand(layer.weight.shape) < 0.4)
    signs = weight_signs(layer)
    assert signs.dtype == torch.int8
    assert torch.equal(signs, signs_by_hand(layer))


def test_the_sign_of_zero_is_plus():
    layer = BinaryConv2d(1, 1, 2, standardize=False, binary_weights=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[[[0.0, -0.0], [1.0, -1.0]]]]))
    assert weight_signs(layer).flatten().tolist() == [1, 1, 1, -1]


def test_flips_are_counted_where_a_weight_survives_twice():
    before = torch.tensor([1, 1, -1, -1, 0, 0, 1, -1], dtype=torch.int8)
    after = torch.tensor([1, -1, 1, -1, 1, 0, 0, 1], dtype=torch.int8)
    assert count_flips(before, after) == (3, 5)
    assert count_flips(before, torch.zeros_like(before)) == (0, 0)


def test_a_gain_that_changes_its_sign_flips_its_filter():
    layer = BinaryConv2d(2, 3, 3)
    before = weight_signs(layer)
    with torch.no_grad():
        layer.gain[2] *= -1
    assert count_flips(before, weight_signs(layer)) == (18, 54)


@pytest.mark.parametrize("shape", [(0,), (1,), (4,), (5,), (3, 2, 3, 3)])
def test_packing_loses_nothing_and_needs_a_quarter(shape):
    signs = torch.randint(-1, 2, shape, dtype=torch.int8)
    packed = pack_signs(signs)
    assert packed.dtype == torch.uint8
    assert len(packed) == (signs.numel() + 3) // 4
    assert torch.equal(unpack_signs(packed, signs.shape), signs)


def test_the_followed_layers_are_the_binary_ones_or_those_that_will_be():
    units = {f"body.{stage}.{unit}.convolution" for stage in range(4) for unit in range(4)}
    shortcuts = {f"body.{stage}.0.projection" for stage in range(1, 4)}
    assert binary_layers(ReActNet18(width=4)).keys() == units
    assert binary_layers(ReActNet18(width=4, binary_shortcut=True)).keys() == units | shortcuts
    assert binary_layers(ReActNet18(width=4, binary_weights=False)).keys() == units
    real = torch.nn.Sequential(BinaryConv2d(1, 1, 1, binary_weights=False), torch.nn.ReLU())
    assert list(binary_layers(real)) == ["0"]
    assert binary_layers(torch.nn.Linear(2, 2)) == {}


def test_compilation_changes_no_name():
    network = ReActNet18(width=4)
    assert binary_layers(torch.nn.ModuleDict({"a": torch.compile(network)})).keys() == {
        f"a.{name}" for name in binary_layers(network)
    }
