"""ResNet-9: the published layers, the images it takes, and what it refuses."""

import pytest
import torch
from torch import nn

from bnfree.backbones import ResNet9
from bnfree.errors import InputError


def test_it_has_the_published_layers():
    """(channels in, channels out, side of the output) of each convolution, width 64, images of 32 pixels."""
    layers = [(3, 64, 32), (64, 128, 32), (128, 128, 16), (128, 128, 16),
              (128, 256, 16), (256, 512, 8), (512, 512, 4), (512, 512, 4)]  # fmt: skip
    network = ResNet9().eval()
    found = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, x, y: found.append((m.in_channels, m.out_channels, y.shape[-1])))
    network(torch.zeros(1, 3, 32, 32))
    assert found == layers
    numbers = sum(9 * inputs * outputs + 2 * outputs for inputs, outputs, _ in layers) + 512 * 10 + 10
    assert sum(parameter.numel() for parameter in network.parameters()) == numbers


@pytest.mark.parametrize(("channels", "side"), [(3, 32), (1, 28), (3, 8), (3, 64)])
def test_images_of_every_size_from_8_on(channels, side):
    network = ResNet9(num_classes=7, width=2, in_channels=channels).eval()
    images = torch.randn(3, channels, side, side)
    logits = network(images)
    assert logits.shape == (3, 7)
    assert torch.allclose(network(images[1:2]), logits[1:2], atol=1e-6)


def test_a_place_in_the_image_does_not_matter_within_eight_pixels():
    network = ResNet9(width=2).double().eval()
    images = torch.zeros(1, 3, 64, 64, dtype=torch.float64)
    images[:, :, 24:32, 24:32] = torch.randn(3, 8, 8, dtype=torch.float64)
    assert torch.allclose(network(images), network(images.roll((8, -8), (2, 3))))


@pytest.mark.parametrize("argument", ["num_classes", "width", "in_channels"])
def test_numbers_below_one_are_refused(argument):
    with pytest.raises(InputError, match=f"{argument}=0 must be at least 1"):
        ResNet9(**{argument: 0})
