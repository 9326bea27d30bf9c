"""Local attention against its formula, and in a network that is calibrated and trained."""

import pytest
import torch
from torch.nn import functional as F

from bnfree.backbones import ReActNet18
from bnfree.calibration import calibrate
from bnfree.errors import InputError
from bnfree.local_attention import LocalAttention
from bnfree.packing import pack


def test_it_is_the_identity_at_the_start_and_its_formula_later():
    torch.manual_seed(0)
    layer, x = LocalAttention(6, 5, group_size=2).double(), torch.randn(3, 6, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x)
    with torch.no_grad():
        layer.norm.weight.normal_()
        layer.norm.bias.normal_()

    def factors(means):
        z = F.conv1d(means, layer.convolution.weight, padding=2, groups=3)
        z = z.view(3, 2, -1)
        z = ((z - z.mean(2, keepdim=True)) / (z.var(2, correction=0, keepdim=True) + 1e-5).sqrt()).view_as(means)
        return 2 / (1 + torch.exp(-(z * layer.norm.weight[:, None] + layer.norm.bias[:, None])))

    expected = x * factors(x.mean(3))[:, :, :, None] * factors(x.mean(2))[:, :, None, :]
    torch.testing.assert_close(layer(x), expected)
    assert ((layer(x) / x) > 0).all()
    assert ((layer(x) / x) < 4).all()
    # No image sees another.
    torch.testing.assert_close(layer(x)[1:2], layer(x[1:2]))


def test_a_network_with_it_starts_as_one_without_and_learns_it():
    torch.manual_seed(0)
    plain = ReActNet18(num_classes=4, width=2)
    network = ReActNet18(num_classes=4, width=2, attention=True)
    missing = network.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert all(".attention." in name for name in missing)
    x = torch.randn(4, 3, 9, 9)
    torch.testing.assert_close(network(x), plain(x))
    assert len(network.feature_info) == 4
    calibrate(network, x)
    network(x).square().sum().backward()
    assert network.body[1].attention.norm.weight.grad.abs().sum() > 0
    with pytest.raises(InputError):
        pack(network)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"kernel_size": 4}, "kernel_size=4 must be an odd"), ({"group_size": 4}, "group_size=4 must divide the 6")],
)
def test_mistakes(options, sentence):
    with pytest.raises(InputError, match=sentence):
        LocalAttention(6, **options)
