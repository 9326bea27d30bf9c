"""Packed networks as trainable ones: the same logits, whatever the network was."""

import pytest
import torch
from packable_networks import images

from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.calibration import calibrate
from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError
from bnfree.packing import pretrained_path
from bnfree.packing.file_format import read
from bnfree.packing.folding import fold
from bnfree.packing.trainable import trainable_state_dict
from bnfree.packing.unpacked_network import UnpackedNetwork


def trained(kind, width, **options):
    """A network that looks trained: calibrated, with gains of both signs and shifts of its own."""
    torch.manual_seed(0)
    network = kind(num_classes=7, width=width, **options)
    calibrate(network, images(0, 32, 3, 16, 16), full=True)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith((".gain", ".shift", ".shift_in", ".shift_out", ".slope")):
                parameter += 0.1 * torch.randn_like(parameter)
        network.body[0][1].convolution.gain[0] *= -1
    return network


@pytest.mark.parametrize(
    ("kind", "width", "options"),
    [
        (ReActNet18, 8, {}), (ReActNet18, 8, {"binary_shortcut": True, "alpha": 0.25}),
        (ReActNet18, 8, {"stem": "imagenet"}), (ReActNetA, 8, {"stem": "cifar"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("pruned", [False, True])
def test_a_fresh_network_with_them_computes_what_the_packed_one_does(kind, width, options, pruned):
    network = trained(kind, width, **options)
    if pruned:
        for module in network.modules():
            if isinstance(module, BinaryConv2d) and module.binary_weights:
                module.set_mask(torch.rand(module.weight.shape) < 0.5)
    layers = fold(network, classifier_precision="float32")
    fresh = kind(num_classes=7, width=width, **options)
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    state = trainable_state_dict(layers, fresh)
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())
    fresh.load_state_dict(state, strict=True)
    batch = images(1, 32, 3, 16, 16)
    with torch.no_grad():
        found, expected = fresh.eval()(batch), UnpackedNetwork(layers)(batch)
    # Single activations may fall on the other side of their threshold where constants are rounded otherwise.
    assert (found - expected).abs().mean() < 0.02 * expected.std()
    for (name, ours), theirs in zip(fresh.named_modules(), network.modules(), strict=True):
        if isinstance(ours, BinaryConv2d) and ours.binary_weights:
            assert torch.equal(ours.effective_weight().sign(), theirs.effective_weight().sign()), name


@pytest.mark.slow
def test_the_pretrained_network_trains_on():
    layers, _ = read(pretrained_path("cifar10_reactnet18_w16"))
    network = ReActNet18(num_classes=10, width=16, binary_shortcut=True)
    network.load_state_dict(trainable_state_dict(layers, network))
    batch = images(1, 16, 3, 32, 32)
    with torch.no_grad():
        expected, found = UnpackedNetwork(layers)(batch), network(batch)
    assert (found - expected).abs().mean() < 0.02 * expected.std()
    network(batch).sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())


def test_networks_that_cannot_hold_them_are_refused():
    layers = fold(trained(ReActNet18, 8))
    for network, words in (
        (ReActNet18(num_classes=7, width=8, norm="batch_norm"), "norm='bn_free'"),
        (ReActNet18(num_classes=7, width=8, binary_weights=False), "binary_weights=True"),
        (ReActNet18(num_classes=7, width=8, blocks_per_stage=[1, 1, 1, 1]), "has 16 residual units, the backbone 4"),
        (ReActNet18(num_classes=7, width=8, binary_shortcut=True), "has a real shortcut at body.1.0"),
    ):
        with pytest.raises(InputError, match=words):
            trainable_state_dict(layers, network)
    # sin(20 w) of weights of +-1/6 has the other sign.
    narrow = fold(trained(ReActNet18, 4))
    with pytest.raises(InputError, match="weight_transform gives other signs than the packed network has at body.0.0"):
        trainable_state_dict(narrow, ReActNet18(num_classes=7, width=4, weight_transform="biper"))
    twin = ReActNet18(num_classes=7, width=8, norm="batch_norm").eval()
    with torch.no_grad():
        for module in twin.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_()
    with pytest.raises(InputError, match="stem has a shift"):
        trainable_state_dict(fold(twin), ReActNet18(num_classes=7, width=8))


def test_where_beta_is_0_the_shift_alone_decides():
    network = trained(ReActNetA, 4, stem="cifar")
    with torch.no_grad():
        network.body[1][0].beta.zero_()
        network.body[1][0].rsign.shift[::2] = -1
    layers = fold(network, "float32")
    fresh = ReActNetA(num_classes=7, width=4, stem="cifar")
    fresh.load_state_dict(trainable_state_dict(layers, fresh))
    batch = images(1, 4, 3, 8, 8)
    with torch.no_grad():
        found, expected = fresh.eval()(batch), network.eval()(batch)
    assert (found - expected).abs().mean() < 0.02 * expected.std()
