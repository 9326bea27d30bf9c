"""Gradients in 16 bits at small images, in memory that has held NaNs: against float64."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.convolution import BinaryConv2d
from bnfree.lean import fast
from bnfree.lean.convolution import convolution_gradients
from bnfree.lean.geometry import Geometry

needs_bf16 = pytest.mark.skipif(not fast.bf16_works(), reason="this CPU does not multiply bfloat16")


def poison():
    """Frees memory of many sizes, all of it NaN."""
    kept = [
        torch.full((size,), torch.nan) for size in (32, 64, 128, 288, 576, 1152, 2304, 4608, 9216) for _ in range(8)
    ]
    del kept


@needs_bf16
@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_convolution_gradients_of_every_shape(size, stride, groups, layout):
    generator = torch.Generator().manual_seed(0)
    geometry = Geometry(stride, size // 2, groups)
    for height, width, (channels, filters) in itertools.product(range(1, 6), range(1, 6), [(16, 32), (6, 8)]):
        x = torch.randn(3, channels, height, width, generator=generator).sign()
        weight = torch.randn(filters, channels // groups, size, size, generator=generator).sign()
        output = F.conv2d(x, weight, None, stride, size // 2, 1, groups)
        gradient = torch.randn(output.shape, generator=generator).to(torch.bfloat16)
        expected = convolution_gradients(gradient.double(), x.double(), weight.double(), geometry, True, True)
        halves = [t.to(torch.bfloat16).contiguous(memory_format=layout) for t in (gradient, x, weight)]
        poison()
        found = convolution_gradients(*halves, geometry, True, True)
        for result, reference in zip(found, expected, strict=True):
            error = (result.double() - reference).abs().max() / reference.abs().max()
            assert error < 2**-7, (height, width, channels)


@needs_bf16
@pytest.mark.parametrize("lean", [True, False])
@pytest.mark.parametrize("binary", [True, False])
def test_autocast_of_a_layer_at_one_pixel(lean, binary):
    torch.manual_seed(0)
    layer = BinaryConv2d(16, 32, 3, stride=2, padding=1, binary_weights=binary)
    layer.lean = lean
    x = torch.randn(4, 16, 1, 1).sign()
    layer(x).sum().backward()
    expected, layer.weight.grad = layer.weight.grad, None
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
    poison()
    output.float().sum().backward()
    torch.testing.assert_close(layer.weight.grad, expected, rtol=0.1, atol=2e-2 * expected.abs().max().item())


@needs_bf16
@pytest.mark.parametrize(
    ("kind", "size", "stem"),
    [(ReActNetA, 8, "cifar"), (ReActNetA, 16, "cifar"), (ReActNet18, 4, "cifar"), (ReActNet18, 8, "imagenet")],
)
@pytest.mark.parametrize("way", ["fast", "autocast", "plain autocast"])
def test_networks_at_small_images(kind, size, stem, way):
    torch.manual_seed(0)
    network = kind(width=16, stem=stem)
    if way == "fast":
        network.fast = ["bf16_backward"]
    network.lean = way != "plain autocast"
    images = torch.randn(4, 3, size, size)
    with torch.autocast("cpu", torch.bfloat16, enabled=way != "fast"):
        loss = F.cross_entropy(network(images), torch.arange(4))
    for _ in range(3):
        poison()
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() < 1e3, name
