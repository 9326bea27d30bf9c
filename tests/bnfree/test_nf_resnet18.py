"""The NF-ResNet-18: its variance at initialisation, its independence from the batch, its size."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from bnfree.backbones import NFResNet18
from bnfree.backbones.nf_resnet18 import NormalizerFreeBlock, ScaledReLU
from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError


def blocks(network: NFResNet18) -> list[NormalizerFreeBlock]:
    return [module for module in network.modules() if isinstance(module, NormalizerFreeBlock)]


def test_the_scaled_relu_keeps_variance_one():
    relu = ScaledReLU(2)
    relu.shift.data = torch.tensor([0.0, 0.5])
    x = torch.linspace(-8, 8, 200_001, dtype=torch.float64)
    weight = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi) * (x[1] - x[0])
    y = relu.double()(x.view(-1, 1, 1, 1).expand(-1, 2, 1, 1))[:, 0, 0, 0]
    assert ((y.square() * weight).sum() - (y * weight).sum() ** 2).item() == pytest.approx(1, abs=1e-9)
    shifted = relu(torch.ones(1, 2, 1, 1, dtype=torch.float64)).flatten()
    assert (shifted[1] / shifted[0]).item() == pytest.approx(1.5)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_the_trunk_has_the_predicted_variance(alpha):
    """With open branches; SkipInit closes them, and then only the shortcuts are there."""
    torch.manual_seed(1)
    network = NFResNet18(alpha=alpha)
    measured = []
    for block in blocks(network):
        torch.nn.init.ones_(block.skip_gain)
        # Over all channels: their means are apart, and together 0.
        block.register_forward_hook(lambda _, x, y: measured.append(y.square().mean().item()))
    for layer in network.modules():
        if isinstance(layer, BinaryConv2d) and layer.padding:
            # The rule knows nothing of borders, so there are none here.
            layer.register_forward_pre_hook(lambda _, x: F.pad(x[0], (1, 1, 1, 1), mode="circular"))
            layer.padding = 0
    with torch.no_grad():
        network(torch.randn(2, 3, 64, 64))
    rule = [1 + alpha**2, 1 + 2 * alpha**2] * 4
    assert [block.beta for block in blocks(network)] == pytest.approx([1, *(v**-0.5 for v in rule[:-1])])
    assert measured == pytest.approx(rule, rel=0.06)


def test_a_fresh_block_is_its_shortcut():
    block = NormalizerFreeBlock(4, 4, 1, beta=0.7, alpha=0.2)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(block(x), x)


def test_a_block_is_the_formula():
    torch.manual_seed(1)
    block = NormalizerFreeBlock(4, 8, 2, beta=0.7, alpha=0.3).double()
    block.skip_gain.data.fill_(0.9)
    block.activation1.shift.data = torch.randn(4, dtype=torch.float64)
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)

    def convolve(x, layer, **geometry):
        weight, fan_in = layer.weight, layer.weight[0].numel()
        mean = weight.mean((1, 2, 3), keepdim=True)
        std = (weight - mean).square().mean((1, 2, 3), keepdim=True).sqrt()
        return F.conv2d(x, (weight - mean) / (std + 1e-5) / fan_in**0.5, **geometry)

    gamma = 1.0 / math.sqrt(0.5 - 0.5 / math.pi)
    active = gamma * torch.relu(0.7 * x + block.activation1.shift.view(1, 4, 1, 1))
    branch = gamma * torch.relu(convolve(active, block.convolution1, stride=2, padding=1))
    branch = convolve(branch, block.convolution2, padding=1)
    expected = convolve(active, block.projection, stride=2) + 0.3 * 0.9 * branch
    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_the_output_does_not_depend_on_the_batch_or_the_mode(stem):
    torch.manual_seed(0)
    network = NFResNet18(num_classes=5, stem=stem, width=4, in_channels=1).double()
    for block in blocks(network):
        torch.nn.init.ones_(block.skip_gain)
    images = torch.randn(4, 1, 32, 32, dtype=torch.float64)
    together = network.train()(images)
    assert together.shape == (4, 5)
    alone = torch.cat([network.eval()(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    assert network.body(network.stem(images)).shape[-1] == (4 if stem == "cifar" else 1)


@pytest.mark.parametrize(("stem", "kernel", "width"), [("cifar", 3, 64), ("imagenet", 7, 8)])
def test_the_number_of_parameters(stem, kernel, width):
    total = kernel**2 * 3 * width + width
    channels = width
    for stage in range(4):
        out = width * 2**stage
        for block in range(2):
            inner = out if block else channels
            total += 9 * inner * out + 9 * out * out + 2 * out  # two convolutions and their gains
            total += inner + out + 1  # shifts and SkipInit
            total += (inner * out + out) if stage and not block else 0  # projection
        channels = out
    total += channels + 10 * channels + 10
    assert sum(p.numel() for p in NFResNet18(10, stem=stem, width=width).parameters()) == total


@pytest.mark.parametrize("options", [{"num_classes": 0}, {"width": 0}, {"in_channels": 0}, {"alpha": 0}, {"stem": "x"}])
def test_arguments_out_of_range_are_named(options):
    with pytest.raises(InputError, match=f"^{next(iter(options))}="):
        NFResNet18(**options)
