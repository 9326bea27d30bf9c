"""Merged channels inside branches: what changes nothing, what depends on nothing, and the network that is left."""

import pytest
import torch

from bnfree.backbones import NFResNet18, ReActNet18
from bnfree.compression.inner_channels import read_inner_channels, with_inner_channels
from bnfree.compression.merging import Merge
from bnfree.errors import InputError

WIDTHS = [4, 4, 8, 8, 16, 16, 32, 32]


def network_of(norm="bn_free"):
    """A network whose branches are open, with gains, shifts and statistics as after a training."""
    torch.manual_seed(0)
    network = NFResNet18(num_classes=3, width=4, in_channels=1, norm=norm)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith(("gain", "running_var")):
                tensor.uniform_(0.5, 1.5)
            if name.endswith(("shift", "running_mean", "bias")):
                tensor.normal_(std=0.3)
    return network.eval()


def images():
    return torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(1))


def compressed(network, method):
    return with_inner_channels(network, {name: method(c) for name, c in read_inner_channels(network).items()})


def counts(network):
    return [len(channels.shift) for channels in read_inner_channels(network).values()]


def put(block, target, source):
    """Gives one channel of a block all that another one has."""
    with torch.no_grad():
        for tensor in (block.convolution1.weight, block.convolution1.gain, block.activation2.shift):
            tensor[target] = tensor[source]
        block.convolution2.weight[:, target] = block.convolution2.weight[:, source]


@pytest.mark.parametrize("norm", ["bn_free", "none", "batch_norm"])
def test_plain_convolutions_compute_what_standardised_ones_did(norm):
    network = network_of(norm)
    network.body[2].convolution1.set_mask(torch.rand(8, 4, 3, 3) < 0.5)
    network.body[2].convolution2.set_mask(torch.rand(8, 8, 3, 3) < 0.5)
    same = compressed(network, lambda channels: channels)
    torch.testing.assert_close(same(images()), network(images()), rtol=1e-4, atol=1e-4)
    assert not same.body[2].convolution1.standardize
    assert network.body[2].convolution1.mask is not None


def test_a_duplicated_channel_is_merged_without_error_and_one_that_is_nearly_equal_stays():
    network = network_of()
    put(network.body[1], 3, 0)
    put(network.body[6], 30, 2)
    put(network.body[6], 31, 2)
    put(network.body[3], 5, 1)
    with torch.no_grad():
        network.body[3].activation2.shift[5] += 1e-3
    merged = compressed(network, Merge(beta=0.0))
    assert counts(merged) == [4, 3, 8, 8, 16, 16, 30, 32]
    torch.testing.assert_close(merged(images()), network(images()), rtol=1e-4, atol=1e-4)


def test_a_shift_alone_keeps_channels_apart():
    network = network_of()
    put(network.body[1], 3, 0)
    with torch.no_grad():
        network.body[1].activation2.shift[3] += 5
    assert counts(compressed(network, Merge(beta=0.0))) == WIDTHS


def test_the_order_of_channels_changes_neither_their_number_nor_the_network():
    network, other = network_of(), network_of()
    with torch.no_grad():
        for block in other.body:
            order = torch.randperm(block.activation2.shift.numel())
            for tensor in (block.convolution1.weight, block.convolution1.gain, block.activation2.shift):
                tensor.copy_(tensor[order])
            block.convolution2.weight.copy_(block.convolution2.weight[:, order])
    first, second = compressed(network, Merge(beta=0.6)), compressed(other, Merge(beta=0.6))
    assert counts(first) == counts(second) != WIDTHS
    torch.testing.assert_close(first(images()), second(images()), rtol=1e-4, atol=1e-4)


def test_no_more_goes_than_the_ratio_allows():
    assert counts(compressed(network_of(), Merge(beta=0.99, max_ratio=0.25))) == [3, 3, 6, 6, 12, 12, 24, 24]


def test_the_weights_are_those_of_a_network_with_so_many_channels():
    network = network_of()
    merged = compressed(network, Merge(beta=0.99, max_ratio=0.5))
    fresh = NFResNet18(num_classes=3, width=4, in_channels=1, inner_channels=counts(merged)).eval()
    fresh.load_state_dict(merged.state_dict())
    assert torch.equal(fresh(images()), merged(images()))
    # And can be compressed once more.
    assert sum(counts(compressed(fresh, Merge(beta=0.99, max_ratio=0.5)))) < sum(counts(merged))


def test_what_cannot_be_merged_is_refused_in_a_sentence():
    with pytest.raises(InputError, match="shortcut around every convolution.*mask_sparsity"):
        read_inner_channels(ReActNet18(width=2))
    with pytest.raises(InputError, match="network=Linear is none"):
        read_inner_channels(torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match="GroupNorm, whose result depends on the image"):
        read_inner_channels(network_of("group_norm"))
    with pytest.raises(InputError, match="inner_channels=\\[3, 0\\] must be 8 whole numbers"):
        NFResNet18(inner_channels=[3, 0])
    with pytest.raises(InputError, match="beta=-1 must be"):
        Merge(beta=-1)
