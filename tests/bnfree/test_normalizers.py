"""What stands behind convolutions, by name, dotted path or as a callable: the same in every network."""

import copy

import pytest
import torch
from packable_networks import scatter
from torch import nn

from bnfree.backbones import NFResNet18, ReActNet18, ReActNetA
from bnfree.calibration import calibrate
from bnfree.costs import count_ops
from bnfree.errors import InputError
from bnfree.normalizers import declare, get_normalizer
from bnfree.packing import pack

KINDS = [ReActNet18, ReActNetA, NFResNet18]
NAMES = ["bn_free", "batch_norm", "none", "group_norm", "layer_norm"]


class Affine(nn.Module):
    """A factor and a shift per channel, which packing may fold."""

    def __init__(self, channels):
        super().__init__()
        self.factor, self.shift = (nn.Parameter(torch.randn(channels)) for _ in range(2))

    def forward(self, x):
        return x * self.factor.view(-1, 1, 1) + self.shift.view(-1, 1, 1)

    def folded(self):
        return self.factor, self.shift


@declare(standardize_weights=True, scale_branches=True)
def affine_bn_free(channels):
    return Affine(channels)


def test_group_norm_is_that_of_its_formula():
    x = torch.randn(3, 48, 5, 4, dtype=torch.float64)
    norm = get_normalizer("group_norm")(48).double()
    groups = x.view(3, 3, 16 * 5 * 4)
    std, mean = torch.std_mean(groups, 2, correction=0, keepdim=True)
    torch.testing.assert_close(norm(x), ((groups - mean) / (std.square() + 1e-5).sqrt()).view_as(x))
    assert [get_normalizer("group_norm")(channels).num_groups for channels in (4, 24, 64)] == [1, 3, 4]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_layer_norm_is_over_the_channels_of_each_position(memory_format):
    x = torch.randn(3, 7, 5, 4, dtype=torch.float64).to(memory_format=memory_format)
    norm = get_normalizer("layer_norm")(7).double()
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    std, mean = torch.std_mean(x, 1, correction=0, keepdim=True)
    weight, bias = (p.view(-1, 1, 1) for p in (norm.weight, norm.bias))
    y = norm(x)
    torch.testing.assert_close(y, (x - mean) / (std.square() + 1e-6).sqrt() * weight + bias)
    assert y.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("kind", [ReActNet18, ReActNetA])
@pytest.mark.parametrize("norm", ["group_norm", "layer_norm", affine_bn_free])
def test_lean_and_plain_agree(kind, norm):
    torch.manual_seed(0)
    network = scatter(kind(num_classes=3, width=8, stem="cifar", norm=norm)).double()
    found = []
    for lean in (True, False):
        other = copy.deepcopy(network)
        other.lean = lean
        x = torch.randn(3, 3, 13, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        y = other(x.requires_grad_())
        y.square().sum().backward()
        found.append({"output": y.detach(), "x": x.grad, **{name: p.grad for name, p in other.named_parameters()}})
    for name, expected in found[1].items():
        assert (found[0][name] - expected).norm() <= 1e-9 * expected.norm() + 1e-12, name


@pytest.mark.parametrize(
    ("kind", "norm"),
    [
        *((kind, norm) for kind in (ReActNet18, NFResNet18) for norm in NAMES),
        pytest.param(ReActNetA, "layer_norm", marks=pytest.mark.slow),
    ],
)
def test_every_network_trains_with_every_one(kind, norm):
    torch.manual_seed(0)
    network = kind(num_classes=3, width=4, stem="cifar", norm=norm)
    assert network.norm == norm
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    x, labels = torch.randn(12, 3, 8, 8), torch.arange(12) % 3
    losses = []
    for _ in range(25):
        loss = nn.functional.cross_entropy(network(x), labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert min(losses) < 0.85 * losses[0]


@pytest.mark.parametrize("norm", ["none", "group_norm", "layer_norm"])
def test_an_image_does_not_depend_on_its_neighbours(norm):
    network = ReActNet18(width=4, norm=norm)
    x = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(network(x)[:1], network(x[:1]), rtol=1e-4, atol=1e-5)


def test_state_dicts_of_networks_that_exist_have_their_names():
    def names_of_a_unit(norm):
        names = ReActNet18(width=2, norm=norm).state_dict()
        return {name.removeprefix("body.1.0.") for name in names if "body.1.0." in name}

    unit, twin = names_of_a_unit("bn_free"), names_of_a_unit("batch_norm")
    shared = {"rprelu.shift_in", "rprelu.slope", "rprelu.shift_out", "rsign.shift"}
    assert unit == shared | {"beta", "convolution.weight", "convolution.gain", "projection.weight", "projection.gain"}
    statistics = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    norms = {f"{name}.{statistic}" for name in ("batch_norm", "projection_norm") for statistic in statistics}
    assert twin == shared | norms | {"convolution.weight", "projection.weight"}
    other = ReActNet18(width=2, norm="group_norm").state_dict()
    assert {"stem.normalizer.weight", "body.1.0.normalizer.bias", "body.1.0.projection_norm.weight"} <= set(other)


def test_ones_own_with_alpha_and_beta_is_calibrated_and_packed():
    torch.manual_seed(0)
    network = ReActNet18(num_classes=4, width=4, norm=affine_bn_free, alpha=0.3)
    assert network.wants_calibration
    assert network.norm.endswith("affine_bn_free")
    calibrate(network, torch.randn(16, 3, 16, 16), full=True)
    scatter(network)
    x = torch.randn(5, 3, 17, 16)
    torch.testing.assert_close(pack(network, "float32", engine="torch")(x), network(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("norm", ["group_norm", "layer_norm"])
def test_what_depends_on_the_image_is_not_packed_and_named_as_uncounted(norm):
    network = ReActNet18(width=2, norm=norm)
    words = r"^model has a (Group|Layer)Norm, whose result depends on .*cannot be folded.*'bn_free', 'batch_norm'"
    with pytest.raises(InputError, match=words):
        pack(network)
    with pytest.raises(InputError, match=r"^model has a Identity, which has no method folded\(\), so that"):
        pack(ReActNet18(width=2, norm=nn.Identity))
    assert "body.0.0.normalizer" in count_ops(network, (3, 16, 16)).uncounted
    assert count_ops(ReActNet18(width=2, norm="batch_norm"), (3, 16, 16)).uncounted == ()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("norm", "message"),
    [
        ("grup_norm", "norm='grup_norm' is not known; did you mean 'group_norm'"),
        ("no_such_module.Norm", "norm='no_such_module.Norm' cannot be imported"),
        ("bnfree.normalizers.KIND", "is no normaliser"),
        ("torch.nn.GroupNorm", r"norm='torch.nn.GroupNorm' cannot be called as norm\(channels\) .*num_channels"),
    ],
)
def test_what_is_no_normaliser_is_refused(kind, norm, message):
    with pytest.raises(InputError, match=message):
        kind(width=2, norm=norm)
