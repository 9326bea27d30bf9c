"""The one convolution against a loop over its filters, and its behaviour as a layer."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bnfree.convolution import BinaryConv2d, standardize_weight

KINDS = list(itertools.product([True, False], [True, False], [None, 0.5], [1, 2]))
NAMES = ["binary_weights", "standardize", "density", "groups"]
EPS = 1e-5


def layer(
    binary: bool, standardize: bool, density: float | None = None, groups: int = 1, seed: int = 0
) -> BinaryConv2d:
    torch.manual_seed(seed)
    convolution = BinaryConv2d(
        6, 8, 3, padding=1, groups=groups, binary_weights=binary, standardize=standardize, gain=True
    ).double()
    with torch.no_grad():
        # Beyond 1 in places: the clamp in the gradient must show where weights are not standardised.
        convolution.weight.normal_(0.1, 0.7)
        convolution.gain.normal_(0.2, 1.0)
    if density is not None:
        mask = torch.rand(convolution.weight.shape) < density
        # A filter without survivors, with one, and with two.
        for row, survivors in enumerate(range(3)):
            mask[row] = False
            mask[row].view(-1)[3 : 3 + survivors] = True
        convolution.set_mask(mask)
    return convolution


def filter_by_hand(w: list[float], keep: list[bool], gain: float, binary: bool, standardize: bool) -> list[float]:
    """One filter in Python numbers."""
    kept = [value for value, k in zip(w, keep, strict=True) if k]
    n = len(kept)
    mean = sum(kept) / n if standardize and n >= 2 else 0.0
    std = math.sqrt(sum((v - mean) ** 2 for v in kept) / n) if n >= 2 else 1.0
    values = [(v - mean) / ((std + EPS) * math.sqrt(max(n, 1))) if standardize else v for v in w]
    if binary:
        scale = sum(abs(v) for v, k in zip(values, keep, strict=True) if k) / max(n, 1)
        values = [scale if v >= 0 else -scale for v in values]
    return [gain * v if k else 0.0 for v, k in zip(values, keep, strict=True)]


def by_hand(convolution: BinaryConv2d) -> Tensor:
    mask = convolution.mask if convolution.mask is not None else torch.ones_like(convolution.weight, dtype=torch.bool)
    rows = [
        filter_by_hand(w.flatten().tolist(), keep.flatten().tolist(), gain.item(), *kind)
        for w, keep, gain in zip(convolution.weight, mask, convolution.gain, strict=True)
        for kind in [(convolution.binary_weights, convolution.standardize)]
    ]
    return torch.tensor(rows, dtype=torch.float64).view_as(convolution.weight)


def with_the_detach_trick(convolution: BinaryConv2d) -> Tensor:
    """The effective weight in the published form: hard values forward, clamped values backward, filter by filter."""
    filters = []
    for row in range(convolution.out_channels):
        w = convolution.weight[row]
        keep = torch.ones_like(w, dtype=torch.bool) if convolution.mask is None else convolution.mask[row]
        kept, n = w[keep], int(keep.sum())
        if convolution.standardize and n >= 2:
            kept = (kept - kept.mean()) / ((kept.std(correction=0) + EPS) * n**0.5)
        elif convolution.standardize:
            kept = kept / (1 + EPS)
        if convolution.binary_weights and n:
            hard = kept.abs().mean().detach() * torch.where(kept >= 0, 1.0, -1.0).to(kept.dtype)
            soft = torch.where(kept.abs() <= 1, kept, kept.detach())
            kept = hard.detach() - soft.detach() + soft
        filters.append(torch.zeros_like(w).masked_scatter(keep, kept) * convolution.gain[row])
    return torch.stack(filters)


@pytest.mark.parametrize(NAMES, KINDS)
def test_effective_weight_and_output_against_a_loop_over_filters(binary_weights, standardize, density, groups):
    convolution = layer(binary_weights, standardize, density, groups)
    expected = by_hand(convolution)
    torch.testing.assert_close(convolution.effective_weight(), expected, rtol=1e-12, atol=1e-14)
    x = torch.randn(2, 6, 7, 5, dtype=torch.float64)
    torch.testing.assert_close(convolution(x), F.conv2d(x, expected, padding=1, groups=groups), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(NAMES, KINDS)
def test_gradients_against_the_detach_trick(binary_weights, standardize, density, groups):
    convolution = layer(binary_weights, standardize, density, groups)
    x = torch.randn(2, 6, 7, 5, dtype=torch.float64, requires_grad=True)
    leaves = (x, convolution.weight, convolution.gain)
    incoming = torch.randn(2, 8, 7, 5, dtype=torch.float64)
    got = torch.autograd.grad(convolution(x), leaves, incoming)
    output = F.conv2d(x, with_the_detach_trick(convolution), padding=1, groups=groups)
    expected = torch.autograd.grad(output, leaves, incoming)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    assert got[1].abs().max() > 0
    if convolution.mask is not None:
        assert (got[1][~convolution.mask] == 0).all()


def test_gradients_of_real_weights_against_finite_differences():
    for standardize, density in itertools.product([True, False], [None, 0.5]):
        convolution = layer(False, standardize, density)
        x = torch.randn(1, 6, 4, 4, dtype=torch.float64)

        def forward(weight: Tensor, gain: Tensor, convolution: BinaryConv2d = convolution, x: Tensor = x) -> Tensor:
            return torch.func.functional_call(convolution, {"weight": weight, "gain": gain}, (x,))

        leaves = (convolution.weight, convolution.gain)
        assert torch.autograd.gradcheck(forward, leaves, fast_mode=True)


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("density", [None, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exactly_one_magnitude_in_each_filter(standardize, density, dtype):
    convolution = layer(True, standardize, density).to(dtype)
    with torch.no_grad():
        convolution.gain.fill_(1)
    for row, w in enumerate(convolution.effective_weight()):
        kept = w.flatten() if convolution.mask is None else w[convolution.mask[row]]
        assert len(kept.abs().unique()) == (1 if len(kept) else 0)


def test_plain_weights_at_the_edge_of_the_clamp_keep_their_gradient():
    convolution = BinaryConv2d(1, 1, 2, standardize=False)
    edge = torch.tensor(1.0)
    with torch.no_grad():
        convolution.weight.view(-1).copy_(torch.stack([edge, -edge, edge.nextafter(2 * edge), 0 * edge]))
    convolution.effective_weight().sum().backward()
    assert convolution.weight.grad.flatten().tolist() == [1, 1, 0, 1]
    assert convolution.effective_weight().flatten()[3] > 0


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("density", [0.5, 0.2, 0.05])
def test_a_mask_prunes_exactly_and_keeps_the_signal(density, binary, standardize):
    torch.manual_seed(0)
    convolution = BinaryConv2d(128, 256, 3, padding=1, binary_weights=binary, standardize=standardize)
    x = torch.where(torch.randn(4, 128, 12, 12) >= 0, 1.0, -1.0)
    dense = convolution(x)[:, :, 1:-1, 1:-1].std().item()
    fan_in = 128 * 9
    kept = round(density * fan_in)
    order = torch.rand(256, fan_in).argsort(1).argsort(1)
    convolution.set_mask((order < kept).view_as(convolution.weight))
    assert int((convolution.effective_weight() != 0).sum()) == kept * 256
    pruned = convolution(x)[:, :, 1:-1, 1:-1].std().item()
    if standardize:
        assert pruned == pytest.approx(dense, rel=0.03)
    else:
        # Plain weights have no fan-in to rescale to: fewer weights of the same size, a signal weaker by sqrt(density).
        assert pruned == pytest.approx(dense * (kept / fan_in) ** 0.5, rel=0.03)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("density", [None, 0.5])
def test_degenerate_filters_are_finite(binary, standardize, density):
    convolution = layer(binary, standardize, density)
    with torch.no_grad():
        convolution.weight[3] = 0.3
        convolution.weight[4] = 0.0
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64, requires_grad=True)
    y = convolution(x)
    y.square().sum().backward()
    for tensor in (y, x.grad, convolution.weight.grad, convolution.gain.grad):
        assert torch.isfinite(tensor).all()


@pytest.mark.parametrize("binary", [True, False])
def test_a_single_survivor_keeps_its_value_and_no_survivor_gives_zero(binary):
    convolution = layer(binary, True, 0.5)
    effective = convolution.effective_weight() / convolution.gain
    assert (effective[0] == 0).all()
    only = convolution.weight[1].flatten()[3].item()
    assert effective[1].flatten()[3].item() == pytest.approx(only / (1 + EPS))
    assert int((effective[1] != 0).sum()) == 1


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("value", [1.0, -1.0, 0.1, -1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_survivors_are_not_erased_by_their_mean(binary, value, dtype):
    convolution = layer(binary, True).to(dtype)
    mask = torch.rand(convolution.weight.shape) < 0.4
    with torch.no_grad():
        # The pruned weights of the filters differ; they must not matter.
        convolution.weight[mask] = value
    convolution.set_mask(mask)
    effective = convolution.effective_weight()
    assert torch.equal(effective != 0, mask)
    for row, keep, gain in zip(effective, mask, convolution.gain, strict=True):
        expected = gain.item() * value / (1 + EPS) / int(keep.sum()) ** 0.5
        torch.testing.assert_close(row[keep], torch.full_like(row[keep], expected))


def test_kernels_of_a_single_weight_are_not_erased():
    convolution = BinaryConv2d(4, 4, 1, groups=4, binary_weights=False)
    assert (convolution.effective_weight() != 0).all()
    torch.testing.assert_close(convolution.effective_weight(), convolution.weight / (1 + EPS))


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("density", [None, 0.5])
def test_standardised_weights_do_not_feel_the_scale_or_the_mean_of_the_latent(binary, density):
    convolution = layer(binary, True)
    if density is not None:
        convolution.set_mask(torch.rand(convolution.weight.shape) < density)
    before = convolution.effective_weight().detach()
    with torch.no_grad():
        convolution.weight.mul_(torch.linspace(0.5, 20, 8, dtype=torch.float64).view(8, 1, 1, 1)).add_(0.7)
    torch.testing.assert_close(convolution.effective_weight(), before, rtol=1e-4, atol=1e-6)
    rows = standardize_weight(convolution.weight, convolution.mask).flatten(1)
    torch.testing.assert_close(rows.sum(1), torch.zeros(8, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(rows.square().sum(1), torch.ones(8, dtype=torch.float64), rtol=1e-3, atol=0)
    gradient = torch.autograd.grad(
        convolution.effective_weight().mul(torch.randn(8, 6, 3, 3)).sum(), convolution.weight
    )[0]
    centred = convolution.weight - convolution.weight.mean((1, 2, 3), keepdim=True)
    if density is None:
        cosine = F.cosine_similarity(gradient.flatten(1), centred.flatten(1))
        assert cosine.abs().max() < 1e-3
