"""3x3 binary convolutions in groups of equally many channels."""

import pytest
import torch

from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.costs import count_ops
from bnfree.errors import InputError
from bnfree.packing import pack


@pytest.mark.parametrize("kind", [ReActNet18, ReActNetA])
def test_groups_are_of_equal_size_in_every_layer(kind):
    torch.manual_seed(0)
    network = kind(num_classes=4, width=4, group_size=4)
    grouped = [m for n, m in network.named_modules() if getattr(m, "kernel_size", 0) == 3 and "stem" not in n]
    assert len(grouped) > 12
    for layer in grouped:
        assert layer.weight.shape[1] == 4
        assert layer.groups == layer.in_channels // 4
    x = torch.randn(2, 3, 16, 16)
    lean = network(x)
    network.lean = False
    torch.testing.assert_close(network(x), lean, rtol=1e-4, atol=1e-4)


def test_operations_shrink_in_proportion_and_one_group_is_the_dense_layer():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)

    def bops(group_size):
        network = ReActNet18(num_classes=4, width=8, group_size=group_size, blocks_per_stage=[2, 1, 1, 1])
        return next(c.bops for c in count_ops(network, (3, 8, 8)).rows if c.name == "body.0.0.convolution")

    assert bops(4) * 2 == bops(8) == bops(None)
    torch.manual_seed(0)
    one = ReActNet18(num_classes=4, width=4, group_size=4).body[0][0]
    torch.manual_seed(0)
    dense = ReActNet18(num_classes=4, width=4).body[0][0]
    torch.testing.assert_close(one.convolution.weight, dense.convolution.weight)
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(one(x), dense(x))


@pytest.mark.parametrize("group_size", [2, 4, 8])
def test_the_variance_of_a_grouped_layer_is_that_of_a_dense_one(group_size):
    torch.manual_seed(0)
    network = ReActNet18(num_classes=4, width=8, group_size=group_size, binary_weights=False)
    layer = network.body[0][0].convolution
    signs = torch.randint(0, 2, (64, 8, 12, 12)).float() * 2 - 1
    assert layer(signs)[:, :, 1:-1, 1:-1].var().item() == pytest.approx(1, rel=0.05)


def test_refusals():
    with pytest.raises(InputError, match="group_size=3 must divide the 4 channels"):
        ReActNet18(num_classes=4, width=4, group_size=3)
    with pytest.raises(InputError, match="group_size=0 must be at least 1"):
        ReActNet18(num_classes=4, width=4, group_size=0)
    with pytest.raises(InputError, match=r"has groups=2"):
        pack(ReActNet18(num_classes=4, width=4, group_size=2))
