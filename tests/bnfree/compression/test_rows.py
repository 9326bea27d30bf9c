"""Rows that are gone: the outputs are those of the network in which their gains are 0, and they cost nothing."""

import copy

import pytest
import torch
from torch.nn import functional as F
from torch.optim import SGD, Adam

from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.calibration import calibrate, calibrate_gains
from bnfree.compression import count_rows, remove_rows, row_layers, zero_rows
from bnfree.convolution import BinaryConv2d
from bnfree.costs import count_ops
from bnfree.diagnostics import weight_statistics
from bnfree.errors import InputError
from bnfree.lightning_modules.modules.initial_weights import load_initial_weights
from bnfree.lightning_modules.training.loading import check_weights
from bnfree.optimizers.adamp import AdamP
from bnfree.optimizers.muon import Muon
from bnfree.optimizers.sgdp import SGDP
from bnfree.packing import load, pack

IMAGES = (3, 3, 16, 16)


def with_zero_gains(cls=ReActNet18, masks=False, **options):
    """A network with random parameters, whose layers have lost none, one, half or all of their gains in turn."""
    torch.manual_seed(0)
    network = cls(num_classes=10, width=4, stem="cifar", **options)
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    for index, layer in enumerate(row_layers(network).values()):
        counts = 1, layer.out_channels // 2, layer.out_channels, 0
        gone = torch.randperm(layer.out_channels)[: counts[index % 4]]
        layer.gain.data[gone] = 0
        if masks and index % 3:
            layer.set_mask(torch.rand_like(layer.weight) < 0.4)
    return network


def shrunk(network):
    smaller = copy.deepcopy(network)
    remove_rows(smaller, zero_rows(network))
    return smaller


@pytest.mark.parametrize("lean", [True, False])
@pytest.mark.parametrize(("cls", "masks"), [(ReActNet18, False), (ReActNet18, True), (ReActNetA, False)])
def test_outputs_and_gradients_are_those_of_gains_of_0(cls, masks, lean):
    whole = with_zero_gains(cls, masks, lean=lean).double()
    smaller, images = shrunk(whole), torch.randn(IMAGES, dtype=torch.float64)
    assert len(row_layers(smaller)["body.0.2.convolution" if cls is ReActNet18 else "body.1.0.convolution"].weight) == 0
    outputs = [network(images) for network in (whole, smaller)]
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(smaller.eval()(images), outputs[0], rtol=0, atol=1e-12)
    layers, expected = row_layers(smaller), dict(whole.named_parameters())
    for name, parameter in smaller.named_parameters():
        layer, gradient = layers.get(name.rpartition(".")[0]), expected[name].grad
        rows = gradient if layer is None or layer.kept_rows is None else gradient[layer.kept_rows]
        torch.testing.assert_close(parameter.grad, rows, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("fast", ["int8_forward", "bf16_backward", "half_saved"])
def test_fast_modes(fast):
    whole = with_zero_gains()
    smaller, images = shrunk(whole), torch.randn(IMAGES)
    for network in (whole, smaller):
        network.fast = fast
        network(images).sum().backward()
        network.eval()
    with torch.no_grad():
        torch.testing.assert_close(smaller(images), whole(images), rtol=0, atol=1e-5)
    torch.testing.assert_close(smaller.stem.convolution.weight.grad, whole.stem.convolution.weight.grad)


def test_a_layer_alone():
    layer, x = BinaryConv2d(3, 4, 3, padding=1), torch.randn(2, 3, 5, 6)
    expected = layer(x) * torch.tensor([0.0, 1, 0, 1]).view(1, 4, 1, 1)
    layer.keep_rows(torch.tensor([1, 3]))
    assert layer.weight.shape == (2, 3, 3, 3)
    assert layer.gain.shape == (2, 1, 1, 1)
    torch.testing.assert_close(layer(x), expected)
    channels_last = layer(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(channels_last, expected)
    layer.keep_rows(torch.tensor([3]))
    torch.testing.assert_close(layer(x), expected * torch.tensor([0.0, 0, 0, 1]).view(1, 4, 1, 1))
    layer.keep_rows(torch.tensor([], dtype=torch.int64))
    assert torch.equal(layer(x), torch.zeros(2, 4, 5, 6))
    assert weight_statistics(layer).forward_error == 0


def test_the_state_dict_says_which_rows_there_are():
    whole = with_zero_gains(masks=True)
    smaller, images = shrunk(whole).eval(), torch.randn(IMAGES)
    assert not any("kept_rows" in name for name in whole.state_dict())
    fresh = ReActNet18(num_classes=10, width=4)
    fresh.load_state_dict(smaller.state_dict())
    assert count_rows(fresh) == count_rows(smaller) == (146, 240)
    assert torch.equal(fresh.eval()(images), smaller(images))
    fresh.load_state_dict(whole.state_dict())
    assert count_rows(fresh) == (240, 240)
    assert torch.equal(fresh(images), whole.eval()(images))


@pytest.mark.parametrize(
    "rows",
    [
        torch.tensor([3, 2, 0]),
        torch.tensor([0, 2, 2]),
        torch.tensor([-1, 2, 3]),
        torch.tensor([0, 2, 9]),
        torch.tensor([0, 2]),
        torch.tensor([0.0, 2, 3]),
        torch.tensor([[0, 2, 3]]),
        torch.tensor(3),
        [0, 2, 3],
    ],
    ids=str,
)
def test_rows_of_a_file_that_contradict_it_are_one_sentence_and_nothing_is_loaded(rows, tmp_path):
    state = dict(shrunk(with_zero_gains()).state_dict())
    state["body.0.0.convolution.kept_rows"] = rows
    fresh = ReActNet18(num_classes=10, width=4)
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    torch.save(state, tmp_path / "network.pt")
    with pytest.raises(InputError, match=r"holds .*'body.0.0.convolution.kept_rows'"):
        load_initial_weights(fresh, tmp_path / "network.pt")
    with pytest.raises(InputError, match="holds 'body.0.0.convolution.kept_rows'"):
        check_weights(fresh.state_dict(), state, "ReActNet18", {}, "network.pt")
    assert fresh.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())
    with pytest.raises(RuntimeError, match="kept_rows must be int64 output channels from 0 to 3") as error:
        fresh.load_state_dict(state)
    assert len(str(error.value).splitlines()) == 2
    assert fresh.body[0][0].convolution.kept_rows is None


def test_operations_parameters_and_bits_by_hand():
    network = ReActNet18(num_classes=10, width=4, blocks_per_stage=[1, 1, 1, 1])
    before = count_ops(network, (3, 16, 16))
    remove_rows(network, {"body.0.0.convolution": [0, 2, 3], "body.1.0.convolution": list(range(8))})
    after = count_ops(network, (3, 16, 16))
    # Each row costs fan-in x positions of the output: 4 x 9 at 16 x 16, and the same at 8 x 8 behind stride 2.
    assert before.bops - after.bops == 3 * (4 * 9) * 16 * 16 + 8 * (4 * 9) * 8 * 8
    assert before.flops == after.flops
    assert before.binary_params - after.binary_params == 3 * 4 * 9 + 8 * 4 * 9
    assert before.real_params - after.real_params == 3 + 8
    rows = {row.name: row for row in after.rows}
    # As a packed file, which has a bit for each channel and nothing else of a row that is gone.
    assert rows["body.0.0.convolution"].bits == 1 * 36 + 32 * 1 + 4
    assert rows["body.1.0.convolution"].bits == 8
    assert 8 * (before.bytes_packed - after.bytes_packed) == 11 * (36 + 32) - 4 - 8
    assert rows["body.1.0.convolution"].ops == 0


def test_a_packed_file_computes_the_same(tmp_path):
    whole = with_zero_gains(masks=True)
    smaller, images = shrunk(whole), torch.randn(IMAGES)
    expected = pack(whole, engine="torch")(images)
    assert torch.equal(pack(smaller, engine="torch")(images), expected)
    pack(smaller, engine="torch").save(tmp_path / "network.safetensors")
    assert torch.equal(load(tmp_path / "network.safetensors", engine="torch")(images), expected)
    pack(whole, engine="torch").save(tmp_path / "whole.safetensors")
    assert (tmp_path / "network.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_a_packed_file_has_all_channels_of_stem_and_shortcuts(tmp_path):
    network = with_zero_gains().eval()
    projections = [unit.projection for unit in network.modules() if getattr(unit, "projection", None) is not None]
    for layer in (network.stem.convolution, *projections):
        layer.keep_rows(torch.arange(1, layer.out_channels))
    images = torch.randn(IMAGES)
    with torch.no_grad():
        torch.testing.assert_close(pack(network, engine="torch")(images), network(images), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("optimizer", [AdamP, SGDP, Muon])
def test_optimizers_of_our_own_take_layers_without_rows(optimizer):
    network = shrunk(with_zero_gains())
    stepped = optimizer(network.parameters(), lr=0.01)
    network(torch.randn(IMAGES)).square().sum().backward()
    stepped.step()
    assert all(bool(parameter.isfinite().all()) for parameter in network.parameters())


def test_every_layer_of_every_optimizer_loses_its_rows():
    network = with_zero_gains()
    optimizer = SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.randn(IMAGES)).sum().backward()
    optimizer.step()
    remove_rows(network, zero_rows(network), (each for each in [optimizer]))
    for parameter in network.parameters():
        assert optimizer.state[parameter]["momentum_buffer"].shape == parameter.shape


@pytest.mark.parametrize("optimizer", [lambda p: SGD(p, lr=0.1, momentum=0.9), lambda p: Adam(p, lr=0.01, fused=True)])
def test_training_goes_on_as_if_the_rows_had_been_frozen_at_0(optimizer):
    whole = with_zero_gains()
    gone = zero_rows(whole)
    networks, images = [whole, copy.deepcopy(whole)], torch.randn(IMAGES)
    optimizers = [optimizer(network.parameters()) for network in networks]
    for step in range(4):
        if step == 2:
            remove_rows(networks[1], gone, [optimizers[1]])
        for network, stepped in zip(networks, optimizers, strict=True):
            stepped.zero_grad()
            F.cross_entropy(network(images), torch.tensor([0, 1, 2])).backward()
            stepped.step()
            if network.body[0][0].convolution.kept_rows is None:
                for name, rows in gone.items():
                    network.get_submodule(name).gain.data[rows] = 0
    layers = row_layers(networks[1])
    for name, parameter in networks[1].named_parameters():
        layer, other = layers.get(name.rpartition(".")[0]), whole.get_parameter(name)
        rows = other if layer is None else layer.of_rows(other)
        torch.testing.assert_close(parameter, rows, rtol=1e-4, atol=1e-5)


def test_calibration_of_what_is_left():
    network, images = shrunk(with_zero_gains()), torch.randn(8, 3, 16, 16)
    calibrate(network, images, full=True)
    calibrate_gains(network, images)
    assert all(bool(layer.gain.isfinite().all()) for layer in row_layers(network).values())


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ({"stem.convolution": [0]}, "'stem.convolution' is no convolution of ReActNet18 whose rows can go"),
        ({"body.0.0.convolution": [4]}, "must be numbers from 0 to 3"),
        ({"body.0.0.convolution": torch.ones(4, dtype=torch.bool)}, "must be numbers of output channels"),
    ],
)
def test_mistakes_change_nothing(rows, sentence):
    network = ReActNet18(num_classes=10, width=4, blocks_per_stage=[1, 1, 1, 1])
    with pytest.raises(InputError, match=sentence):
        remove_rows(network, {"body.3.0.convolution": [0], **rows})
    assert count_rows(network) == (60, 60)


def test_groups_keep_their_rows():
    network = ReActNet18(num_classes=10, width=4, group_size=2)
    assert not row_layers(network)
    with pytest.raises(InputError, match="groups=2"):
        network.body[0][0].convolution.keep_rows(torch.tensor([0]))
