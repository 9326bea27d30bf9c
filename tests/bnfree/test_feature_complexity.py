"""Merging of channels: what may change nothing, and what the number does not depend on."""

import pytest
import torch
from torch import nn

from bnfree.backbones import ReActNet18
from bnfree.errors import InputError
from bnfree.feature_complexity import feature_complexity, merge_channels


def two_layers(incoming, outgoing, x):
    return torch.relu(x @ incoming.T) @ outgoing.T


def test_equal_channels_are_merged_without_error():
    torch.manual_seed(0)
    incoming, outgoing, x = torch.randn(6, 5), torch.randn(3, 6), torch.randn(20, 5)
    incoming[4], outgoing[:, 4] = incoming[1], outgoing[:, 1]
    incoming[5], outgoing[:, 5] = incoming[1], outgoing[:, 1]
    # One that is nearly equal stays.
    incoming[3], outgoing[:, 3] = incoming[0] + 1e-3, outgoing[:, 0]
    rows, columns, groups = merge_channels(incoming, outgoing, beta=0.0)
    assert sorted(map(sorted, groups)) == [[0], [1, 4, 5], [2], [3]]
    torch.testing.assert_close(two_layers(rows, columns, x), two_layers(incoming, outgoing, x), rtol=1e-4, atol=1e-5)


def test_more_is_merged_with_a_larger_beta_and_no_more_than_the_ratio_allows():
    torch.manual_seed(0)
    incoming, outgoing = torch.randn(12, 5), torch.randn(3, 12)
    numbers = [len(merge_channels(incoming, outgoing, beta)[2]) for beta in (0.0, 0.2, 0.5, 0.9)]
    assert numbers[0] == 12
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[-1] < 6
    assert len(merge_channels(incoming, outgoing, 0.9, max_ratio=0.25)[2]) == 9


def test_the_number_does_not_depend_on_the_order_of_channels():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3))
    with torch.no_grad():
        # Five kinds of filters.
        network[0].weight.copy_(torch.randn(5, 3, 3, 3)[torch.arange(16) % 5] + 0.1 * torch.randn(16, 3, 3, 3))
    before = feature_complexity(network, 0.2)
    with torch.no_grad():
        network[0].weight.copy_(network[0].weight[torch.randperm(16)])
    assert feature_complexity(network, 0.2) == before
    assert before["0"] == 5


def test_filters_of_a_binary_layer_count_as_they_are_used():
    torch.manual_seed(0)
    network = ReActNet18(num_classes=4, width=4)
    convolution = network.body[0][0].convolution
    assert feature_complexity(network, 0.0)["body.0.0.convolution"] == 4
    with torch.no_grad():
        convolution.weight[1] = convolution.weight[0]
    assert feature_complexity(network, 0.0)["body.0.0.convolution"] == 3
    with pytest.raises(InputError, match="beta=1 must be"):
        feature_complexity(network, 1)
