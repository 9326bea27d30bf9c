"""Normalisers beyond group and layer norm: each by its formula and by what its source says of it."""

import math

import pytest
import torch
from packable_networks import scatter
from torch import nn

from bnfree.backbones import ReActNet18
from bnfree.errors import InputError
from bnfree.normalizers import get_normalizer, standardizes_weights
from bnfree.normalizers.sandwich import ADVERSARIAL, set_branch
from bnfree.packing import pack

PER_IMAGE = ["instance_norm", "rms_norm", "ibn", "evonorm_s0", "ws_group_norm"]
ALL = [*PER_IMAGE, "evonorm_b0", "sandwich", "sandwich_affine", "bcn"]
ACTIVATED = ["evonorm_s0", "evonorm_b0"]


def made(name, channels):
    """One in double precision with parameters off their initial values."""
    torch.manual_seed(0)
    norm = get_normalizer(name)(channels).double()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
    return norm


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 + 0.5


def affine(norm, value, c):
    return value * norm.weight[c].item() + norm.bias[c].item()


def by_hand(name, norm, x):
    """Element by element with Python's own arithmetic, in training mode."""
    out = torch.empty_like(x)
    images_, channels, height, width = x.shape

    def moments(values):
        values = values.flatten().tolist()
        mean = sum(values) / len(values)
        return mean, sum((v - mean) ** 2 for v in values) / len(values)

    for n in range(images_):
        for c in range(channels):
            for i in range(height * width):
                p, q = divmod(i, width)
                value = x[n, c, p, q].item()
                if name == "instance_norm":
                    mean, variance = moments(x[n, c])
                    result = affine(norm, (value - mean) / math.sqrt(variance + 1e-5), c)
                elif name == "rms_norm":
                    square = sum(v * v for v in x[n].flatten().tolist()) / x[n].numel()
                    result = affine(norm, value / math.sqrt(square + 1e-5), c)
                elif name == "ibn" and c < channels // 2:
                    mean, variance = moments(x[n, c])
                    result = affine(norm.instance, (value - mean) / math.sqrt(variance + 1e-5), c)
                elif name == "ibn":
                    result = affine(norm, value, c - channels // 2)
                elif name == "evonorm_s0":
                    group = 16 * (c // 16) if channels % 16 == 0 else 0
                    _, variance = moments(x[n, group : group + 16])
                    gate = 1 / (1 + math.exp(-norm.v[c].item() * value))
                    result = affine(norm, value * gate / math.sqrt(variance + 1e-5), c)
                else:
                    (_, batch), (_, own) = moments(x[:, c]), moments(x[n, c])
                    below = max(math.sqrt(batch + 1e-5), norm.v[c].item() * value + math.sqrt(own + 1e-5))
                    result = affine(norm, value / below, c)
                out[n, c, p, q] = result
    return out


@pytest.mark.parametrize(
    ("name", "channels"),
    [("instance_norm", 3), ("rms_norm", 3), ("ibn", 5), ("evonorm_s0", 32), ("evonorm_s0", 8), ("evonorm_b0", 3)],
)
def test_it_is_that_of_its_formula(name, channels):
    norm, x = made(name, channels), images(2, channels, 3, 2)
    torch.testing.assert_close(norm(x).detach(), by_hand(name, norm, x))


@pytest.mark.parametrize("name", PER_IMAGE)
def test_an_image_does_not_depend_on_its_neighbours_or_on_the_mode(name):
    norm, x = made(name, 16), images(3, 16, 4, 4)
    y = norm(x)
    torch.testing.assert_close(norm(x[:1]), y[:1])
    torch.testing.assert_close(norm.eval()(x), y)


@pytest.mark.parametrize("name", ACTIVATED)
def test_gradients_are_those_of_the_function(name):
    norm = made(name, 4).eval()
    assert torch.autograd.gradcheck(norm, images(2, 4, 2, 2).requires_grad_(), fast_mode=True)


def test_evonorm_s0_without_its_activation_knows_no_scale():
    norm, x = made("evonorm_s0", 8), images(2, 8, 5, 5)
    with torch.no_grad():
        norm.v.zero_()
    torch.testing.assert_close(norm(1000 * x), norm(x), rtol=1e-3, atol=1e-4)


def test_evonorm_b0_evaluates_with_the_moving_variance():
    norm, x = made("evonorm_b0", 4), images(64, 4, 8, 8)
    before = (norm.eval()(x) - norm.train()(x)).abs().max()
    for _ in range(200):
        norm(x)
    after = (norm.eval()(x) - norm.train()(x)).abs().max()
    assert before > 0.05
    assert after < 1e-3 * before
    torch.testing.assert_close(norm.running_var, x.var((0, 2, 3)), rtol=1e-6, atol=0)


def test_ibn_takes_contrast_and_brightness_from_half_of_the_channels():
    norm, x = made("ibn", 8), images(2, 8, 6, 6)
    changed = norm(3 * x + 2) - norm(x)
    assert changed[:, :4].abs().max() < 1e-4
    assert (changed[:, 4:].flatten(2).abs().amax(2) > 0.1).all()
    assert sum(p.numel() for p in norm.parameters()) == sum(p.numel() for p in nn.BatchNorm2d(8).parameters())


def test_sandwich_is_batch_norm_with_an_affine_of_products():
    norm, x = made("sandwich", 3), images(4, 3, 5, 5)
    plain = nn.BatchNorm2d(3).double()
    with torch.no_grad():
        plain.weight.copy_(norm.branch_weight[0] * norm.weight)
        plain.bias.copy_(norm.branch_weight[0] * norm.bias + norm.branch_bias[0])
    for mode in (True, False):
        torch.testing.assert_close(norm.train(mode)(x), plain.train(mode)(x))
    torch.testing.assert_close(norm.running_var[0], plain.running_var)
    assert torch.equal(norm.running_var[1], torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("name", ["sandwich", "sandwich_affine"])
def test_branches_have_scale_shift_and_statistics_of_their_own(name):
    network = ReActNet18(width=4, norm=name)
    x = torch.randn(4, 3, 16, 16)
    clean = network(x)
    set_branch(network, ADVERSARIAL)
    adversarial = network(x)
    assert not torch.equal(clean, adversarial)
    adversarial.sum().backward()
    gradients = [p.grad for name, p in network.named_parameters() if "branch_" in name]
    assert all((gradient[0] == 0).all() for gradient in gradients)
    assert any((gradient[1] != 0).any() for gradient in gradients)
    with pytest.raises(InputError, match="branch=2"):
        set_branch(network, 2)
    with pytest.raises(InputError, match="no branches to switch"):
        set_branch(ReActNet18(width=4), 0)


def test_the_clean_branch_starts_near_an_identity():
    torch.manual_seed(0)
    norm = get_normalizer("sandwich_affine")(2000)
    factor, shift = norm.affine()
    assert factor.mean().item() == pytest.approx(1, abs=0.005)
    assert factor.std().item() == pytest.approx(0.02, rel=0.1)
    assert (shift == 0).all()


def test_batch_channel_norm_uses_moving_statistics_in_training_and_then_those_of_groups():
    norm, x = made("bcn", 32), images(3, 32, 4, 4)
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    mean = 0.9 * norm.running_mean + 0.1 * x.mean((0, 2, 3))
    variance = 0.9 * norm.running_var + 0.1 * x.var((0, 2, 3), correction=0)
    y = norm(x)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, variance)
    shape = (1, 32, 1, 1)
    z = (x - mean.view(shape)) / (variance.view(shape) + 1e-5).sqrt() * norm.weight.view(shape) + norm.bias.view(shape)
    groups = z.reshape(3, 2, 16 * 16)
    std, mean = torch.std_mean(groups, 2, correction=0, keepdim=True)
    expected = (groups - mean) / (std.square() + 1e-5).sqrt()
    expected = expected * norm.group_weight.view(1, 2, 1) + norm.group_bias.view(1, 2, 1)
    torch.testing.assert_close(y, expected.view_as(y))
    kept = norm.running_mean.clone()
    norm.eval()(x)
    assert torch.equal(norm.running_mean, kept)


def test_standardised_weights_in_front_of_a_group_norm_know_no_scale_and_no_shift():
    assert standardizes_weights("ws_group_norm")
    assert not standardizes_weights("group_norm")
    network = ReActNet18(width=4, norm="ws_group_norm", binary_weights=False).double()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    before = network(x)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("convolution.weight"):
                parameter.mul_(3).add_(0.7)
    # Up to the number that is added to the standard deviation.
    torch.testing.assert_close(network(x), before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ALL)
def test_one_image_is_enough_for_a_step(name):
    torch.manual_seed(0)
    network = ReActNet18(num_classes=3, width=4, norm=name)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    nn.functional.cross_entropy(network(torch.randn(1, 3, 16, 16)), torch.tensor([1])).backward()
    optimizer.step()
    after = network.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    assert sum(not torch.equal(value, after[key]) for key, value in before.items()) > 20


@pytest.mark.parametrize("name", ["instance_norm", "ibn", "sandwich"])
def test_one_value_has_no_statistics(name):
    network = ReActNet18(width=4, norm=name)
    with pytest.raises(InputError, match="1x1 for 1 image.*; take larger images"):
        network(torch.randn(1, 3, 8, 8))


def test_ibn_needs_two_channels():
    with pytest.raises(InputError, match="norm='ibn' halves the channels"):
        ReActNet18(width=1, norm="ibn")


@pytest.mark.parametrize("name", ["sandwich", "sandwich_affine"])
def test_constants_are_packed(name):
    torch.manual_seed(0)
    network = ReActNet18(num_classes=4, width=4, norm=name)
    network(torch.randn(16, 3, 16, 16))
    scatter(network).eval()
    x = torch.randn(5, 3, 17, 16)
    torch.testing.assert_close(pack(network, "float32", engine="torch")(x), network(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", [*PER_IMAGE, "evonorm_b0", "bcn"])
def test_what_depends_on_the_image_says_why_it_is_not_packed(name):
    with pytest.raises(InputError, match="whose result depends on the image, so that it cannot be folded"):
        pack(ReActNet18(width=4, norm=name))
