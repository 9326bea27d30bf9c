"""Networks for packing, with parameters that hide nothing: gains of both signs, shifts, running statistics, masks."""

import torch
from torch import nn

from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.backbones.residual import ReActNet, ResidualUnit, Stem, Variant
from bnfree.convolution import BinaryConv2d


class TwoUnits(ReActNet):
    """A network of one's own: two units, one of them a transition with a projection."""

    def __init__(self, width: int = 3, norm: str = "bn_free", binary_shortcut: bool = True) -> None:
        variant = Variant(norm, True, binary_shortcut, 0.3, False, "approx")
        stem = Stem(2, width, 3, 1, False, variant)
        body = nn.Sequential(
            ResidualUnit(width, width, 3, 1, False, 0.8, variant),
            ResidualUnit(width, 2 * width, 3, 2, True, 0.9, variant),
        )
        super().__init__(4, variant, stem, body)


class WideUnits(ReActNet):
    """Shortcuts of whole words of 32 channels: as they are, repeated, averaged, averaged and repeated, projected."""

    def __init__(self, stem: str = "imagenet") -> None:
        variant = Variant("bn_free", True, True, 0.3, False, "approx")
        first = Stem(3, 32, 7, 2, True, variant) if stem == "imagenet" else Stem(3, 32, 3, 1, False, variant)
        shapes = [(32, 32, 3, 1, 0), (32, 64, 1, 1, 0), (64, 64, 3, 2, 0), (64, 128, 3, 2, 0), (128, 96, 3, 1, 1)]
        units = (ResidualUnit(*shape[:4], bool(shape[4]), 0.9, variant) for shape in shapes)
        super().__init__(4, variant, first, nn.Sequential(*units))


def scatter(network: nn.Module, seed: int = 0, density: float | None = None) -> nn.Module:
    """Moves every parameter and statistic away from where it starts, and prunes; in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
        for name, layer in network.named_modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.copy_(torch.randn(layer.running_mean.shape, generator=generator))
                layer.running_var.copy_(0.3 + 2 * torch.rand(layer.running_var.shape, generator=generator))
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
            if isinstance(layer, BinaryConv2d):
                if layer.gain is not None:
                    layer.gain[::2] *= -1
                if density is not None and name != "stem.convolution":
                    layer.set_mask(torch.rand(layer.weight.shape, generator=generator) < density)
            if isinstance(layer, ResidualUnit) and layer.beta is not None:
                layer.beta *= 0.5 + torch.rand((), generator=generator)
    return network.eval()


def random_network(seed: int, **options: object) -> nn.Module:
    """A ReActNet18, or a ReActNetA without `binary_shortcut`, of random weights."""
    torch.manual_seed(seed)
    density = options.pop("density", None)
    backbone = options.pop("backbone", ReActNet18)
    if backbone is ReActNetA:
        options.pop("binary_shortcut", None)
    return scatter(backbone(num_classes=5, **options), seed, density)


def images(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
