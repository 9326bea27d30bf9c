"""Weights, gradients and images of every size that float32 has: right against float64, or visibly NaN."""

import pytest
import torch
from torch import nn

from bnfree.backbones import ReActNet18
from bnfree.calibration import calibrate
from bnfree.clipping import adaptive_clip_grad_
from bnfree.convolution import BinaryConv2d
from bnfree.diagnostics import measure_signals

SIZES = [1e-44, 1e-30, 1e-20, 1.0, 1e18, 1e19, 1e30, 3e37]


def of_size(size, *shape):
    return (torch.randn(shape, dtype=torch.float64) * size).float()


def effective(weight, mask, binary, standardize, eps=1e-5):
    """The definition, in float64."""
    weight = weight.detach().double()
    kept = torch.ones_like(weight) if mask is None else mask.double()
    count = kept.sum((1, 2, 3), keepdim=True)
    value = weight * kept
    if standardize:
        value = (value - value.sum((1, 2, 3), keepdim=True) / count) * kept
        std = (value.square().sum((1, 2, 3), keepdim=True) / count).sqrt()
        value = value / ((std + eps) * count.sqrt())
    if binary:
        value = torch.where(value >= 0, 1.0, -1.0) * kept * value.abs().sum((1, 2, 3), keepdim=True) / count
    return value


@pytest.mark.parametrize("lean", [True, False])
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_latent_weights(lean, binary, standardize, masked, size):
    layer = BinaryConv2d(6, 4, 3, binary_weights=binary, standardize=standardize)
    layer.lean = lean
    with torch.no_grad():
        layer.weight.copy_(of_size(size, 4, 6, 3, 3))
    mask = (torch.rand(4, 6, 3, 3) < 0.5) if masked else None
    layer.set_mask(mask)
    found, right = layer.effective_weight(), effective(layer.weight, mask, binary, standardize)
    found.backward(torch.randn_like(found))
    if size >= 1e19 and standardize:
        # Squares overflow. Divided by an infinity, all weights would be 0.
        assert found[mask if masked else ...].isnan().all()
    elif found.isfinite().all():
        # Survivors below 1e-23 have a spread of 0 and are left with their mean.
        tiny = size < 1e-20 and masked and standardize
        # Subnormal numbers have hardly a digit.
        atol = 1e-24 if tiny or size < 1e-40 else 1e-6 * right.abs().max().item()
        torch.testing.assert_close(found.double(), right, rtol=0.1 if size < 1e-40 else 1e-5, atol=atol)
        assert layer.weight.grad.isfinite().all()
    else:
        assert (size, binary, standardize) == (3e37, True, False)
    if size == 1e-44:
        assert layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("gradient", [1e-3, 1e25, 1e38])
@pytest.mark.parametrize("size", [1e18, 1e25, 1e38])
@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (3, 2), (5,), (4, 1, 1, 1)])
def test_clipping_by_weights_of_any_size(size, gradient, shape):
    p = nn.Parameter(of_size(1, *shape).clamp(-2, 2) * size)
    p.grad = of_size(1, *shape).clamp(-2, 2) * gradient
    rows = shape[0] if len(shape) > 1 else 1
    weight, before = (t.detach().double().reshape(rows, -1) for t in (p, p.grad))
    factor = (0.01 * weight.norm(dim=1).clamp(min=1e-3) / before.norm(dim=1)).clamp(max=1)
    adaptive_clip_grad_([p], 0.01)
    torch.testing.assert_close(p.grad.double().reshape(rows, -1), before * factor.unsqueeze(1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("size", [1e-44, 1e18, 3e37])
def test_calibration_on_images_of_any_size(size, full):
    network, images = ReActNet18(num_classes=10, in_channels=1, width=4), of_size(size, 8, 1, 8, 8)
    calibrate(network, images, full=full)
    assert all(parameter.isfinite().all() for parameter in network.parameters())
    logits = network(images)
    assert logits.isfinite().all()
    assert logits.std() > 1e-3


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e19, 3e37])
def test_signals_of_any_size(size):
    network, images = ReActNet18(num_classes=10, in_channels=1, width=4), of_size(size, 8, 1, 8, 8)
    first = measure_signals(network, images)[0]
    values = network.stem(images).detach().double()
    variance, mean = torch.var_mean(values, (0, 2, 3), correction=0)
    assert first.variance == pytest.approx(variance.mean().item(), rel=1e-4)
    assert first.mean == pytest.approx(mean.abs().mean().item(), rel=1e-4)
    assert first.drift == pytest.approx((mean.abs() / variance.sqrt()).mean().item(), rel=1e-4)
