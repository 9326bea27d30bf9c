"""ReActNets as a script of 2021 would write them in plain PyTorch: the baseline of the benchmarks.

Written from the formulas of the papers (ReActNet, arXiv 2003.03488; "BNN - BN = ?", arXiv 2104.08215), one module a
formula, every derivative left to autograd: the piecewise polynomial of the sign by masks, weights standardised and
binarised in every forward pass by `std_mean` and the detach trick. Parameters come in the order of the networks of
`bnfree`, so that weights can be copied from one to the other.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.backbones.residual import ReActNet, ResidualUnit


class Bias(nn.Module):
    """A learned shift per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x + self.bias


class PolynomialSign(nn.Module):
    """Sign whose gradient is that of -1, x^2 + 2x, -x^2 + 2x, 1, the pieces chosen by masks."""

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        hard = torch.where(x >= 0, 1.0, -1.0).to(x.dtype)
        below, negative, inside = ((x < edge).to(x.dtype) for edge in (-1, 0, 1))
        soft = -below + (x * x + 2 * x) * (1 - below)
        soft = soft * negative + (-x * x + 2 * x) * (1 - negative)
        soft = soft * inside + (1 - inside)
        return hard.detach() - soft.detach() + soft


class ScaledConv2d(nn.Module):
    """Convolution with standardised, then binarised weights and a gain."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, binary: bool, standardize: bool) -> None:
        super().__init__()
        self.stride, self.binary, self.standardize = stride, binary, standardize
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size) * (inputs * size * size) ** -0.5)
        self.gain = nn.Parameter(torch.ones(outputs, 1, 1, 1)) if standardize else None

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        weight = self.weight
        if self.standardize:
            std, mean = torch.std_mean(weight, dim=[1, 2, 3], keepdim=True, correction=0)
            weight = (weight - mean) / (std + 1e-5) * weight[0].numel() ** -0.5
        if self.binary:
            scale = weight.abs().mean([1, 2, 3], keepdim=True).detach()
            hard = scale * torch.where(weight >= 0, 1.0, -1.0).to(weight.dtype)
            clipped = weight.clamp(-1, 1)
            weight = hard.detach() - clipped.detach() + clipped
        if self.gain is not None:
            weight = weight * self.gain
        return F.conv2d(x, weight, stride=self.stride, padding=(weight.shape[2] - 1) // 2)


class Unit(nn.Module):
    """RPReLU(shortcut + alpha * norm(conv(sign(beta * x + shift))))."""

    def __init__(self, unit: ResidualUnit) -> None:
        super().__init__()
        layer, outputs = unit.convolution, unit.convolution.out_channels
        self.alpha, self.repeats = unit.alpha, unit.repeats
        self.beta = None if unit.beta is None else unit.beta.item()
        self.move = Bias(layer.in_channels)
        self.sign = PolynomialSign()
        self.convolution = like(layer)
        self.norm = nn.Identity() if unit.batch_norm is None else nn.BatchNorm2d(outputs)
        self.pool = nn.Identity() if unit.pool is None else nn.AvgPool2d(2, 2, ceil_mode=True)
        self.projection = nn.Identity() if unit.projection is None else like(unit.projection)
        self.projection_norm = nn.Identity() if unit.projection_norm is None else nn.BatchNorm2d(outputs)
        self.move_in, self.prelu, self.move_out = Bias(outputs), nn.PReLU(outputs), Bias(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        scaled = x if self.beta is None else x * self.beta
        branch = self.norm(self.convolution(self.sign(self.move(scaled))))
        shortcut = x if isinstance(self.pool, nn.Identity) else self.pool(scaled)
        shortcut = self.projection_norm(self.projection(shortcut))
        if self.repeats > 1:
            shortcut = torch.cat([shortcut] * self.repeats, 1)
        out = branch * self.alpha + shortcut if self.alpha != 1 else branch + shortcut
        return self.move_out(self.prelu(self.move_in(out)))


class PlainReActNet(nn.Module):
    """The network that `network` is, with its weights."""

    def __init__(self, network: ReActNet) -> None:
        super().__init__()
        stem = network.stem
        self.stem = like(stem.convolution)
        self.stem_norm = nn.Identity() if stem.batch_norm is None else nn.BatchNorm2d(stem.convolution.out_channels)
        self.pool = nn.Identity() if stem.pool is None else nn.MaxPool2d(3, 2, 1)
        self.body = nn.Sequential(*(Unit(unit) for unit in network.modules() if isinstance(unit, ResidualUnit)))
        self.classifier = nn.Linear(network.classifier.in_features, network.num_classes)
        with torch.no_grad():
            for mine, theirs in zip(self.parameters(), network.parameters(), strict=True):
                mine.copy_(theirs.view(mine.shape))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes)."""
        x = self.body(self.pool(self.stem_norm(self.stem(images))))
        return self.classifier(x.mean((2, 3)))


def like(layer: nn.Module) -> ScaledConv2d:
    return ScaledConv2d(
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.binary_weights, layer.standardize
    )


def networks(name: str, norm: str = "bn_free", **options: object) -> tuple[ReActNet, PlainReActNet]:
    """A network of `bnfree`, with spread-out weights, and its plain twin.

    Args:
        name: `ReActNet18` (32 pixels) or `ReActNetA` (224 pixels).
        norm: `bn_free` or `batch_norm`.
        options: other arguments of the network.
    """
    torch.manual_seed(0)
    network = {"ReActNet18": ReActNet18, "ReActNetA": ReActNetA}[name](norm=norm, **options)
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if "shift" in key:
                # So that signs do not lie on their thresholds.
                parameter.normal_(std=0.3)
    return network, PlainReActNet(network)
