"""The public networks a second time, from their formulas alone and under their own key names.

Nothing here comes from `bnfree`: these are the oracles that `bnfree.reference` and the backbones are measured against.
Forward and backward are those of the published code, tricks with `detach` included.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORMS = ("bn", "none", "bf")
ALPHA = 0.2

A2 = ALPHA**2


def beta_of(branches: int) -> float:
    """Beta after that many branches, in the float32 in which the published code multiplies by it."""
    return torch.tensor((1 + branches * A2) ** -0.5).item()


# As read off the published code: one beta for each block of ReActNet-18, two for each of ReActNet-A.
BETAS_18 = [beta_of(n) for n in [0, 0, 1, 2] + 3 * [3, 0, 1, 2]]
BETAS_A = [(beta_of(n), beta_of(n + 1)) for n in (0, 2, 0, 2, 0, 2, 0, 2, 4, 6, 8, 10, 0)]


def soft_sign(x: Tensor) -> Tensor:
    """Sign; the gradient is that of the two parabolas between -1 and 1."""
    parabolas = torch.where(x < 0, 2 * x + x * x, 2 * x - x * x)
    soft = torch.where(x < -1, -torch.ones_like(x), torch.where(x < 1, parabolas, torch.ones_like(x)))
    return torch.sign(x).detach() - soft.detach() + soft


class Bias(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class Conv(nn.Module):
    def __init__(self, cin: int, cout: int, size: int, stride: int, binary: bool, scaled: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(cout, cin, size, size) * 1e-3)
        if scaled:
            self.gain = nn.Parameter(torch.ones(cout, 1, 1, 1))
        self.stride, self.binary, self.scaled = stride, binary, scaled

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        if self.scaled:
            mean = w.mean((1, 2, 3), keepdim=True)
            std = w.std((1, 2, 3), keepdim=True, correction=0)
            w = (w - mean) / (std + 1e-5) * w[0].numel() ** -0.5
        if self.binary:
            hard = w.abs().mean((1, 2, 3), keepdim=True).detach() * torch.sign(w).detach()
            # Not `clamp`: its gradient at exactly 1, where weights of liuzechun's files lie, differs between versions
            # of PyTorch (1 when the code was published, 0 in 2.15).
            clipped = torch.where(w.abs() <= 1, w, torch.sign(w).detach())
            w = hard - clipped.detach() + clipped
        if self.scaled:
            w = self.gain * w
        return F.conv2d(x, w, stride=self.stride, padding=(w.shape[-1] - 1) // 2)


class Block18(nn.Module):
    def __init__(self, cin: int, cout: int, beta: float, norm: str, binary: bool, binary_downsample: bool) -> None:
        super().__init__()
        bf, bn, stride = norm == "bf", norm == "bn", 1 if cin == cout else 2
        self.alpha, self.beta = (ALPHA, beta) if bf else (1.0, 1.0)
        self.move0 = Bias(cin)
        self.binary_conv = Conv(cin, cout, 3, stride, binary, bf)
        self.bn1 = nn.BatchNorm2d(cout) if bn else nn.Identity()
        self.downsample = nn.Sequential()
        if stride == 2:
            self.downsample.append(nn.AvgPool2d(2, 2))
            self.downsample.append(Conv(cin, cout, 1, 1, binary and binary_downsample, bf))
            if bn:
                self.downsample.append(nn.BatchNorm2d(cout))
        self.move1, self.prelu, self.move2 = Bias(cout), nn.PReLU(cout), Bias(cout)

    def forward(self, x: Tensor) -> Tensor:
        x_in = x * self.beta
        branch = self.bn1(self.binary_conv(soft_sign(self.move0(x_in))))
        shortcut = self.downsample(x_in) if len(self.downsample) else x
        return self.move2(self.prelu(self.move1(self.alpha * branch + shortcut)))


class Public18(nn.Module):
    def __init__(
        self,
        norm: str,
        binary: bool,
        num_classes: int = 1000,
        imagenet: bool = True,
        width: int = 64,
        in_channels: int = 3,
        binary_downsample: bool = True,
    ) -> None:
        super().__init__()
        size, stride = (7, 2) if imagenet else (3, 1)
        self.conv1 = Conv(in_channels, width, size, stride, False, norm == "bf")
        self.bn1 = nn.BatchNorm2d(width) if norm == "bn" else nn.Identity()
        self.maxpool = nn.MaxPool2d(3, 2, 1) if imagenet else nn.Identity()
        cin, betas = width, iter(BETAS_18)
        for stage in range(4):
            layer = nn.Sequential()
            for _ in range(4):
                cout = width * 2**stage
                layer.append(Block18(cin, cout, next(betas), norm, binary, binary_downsample))
                cin = cout
            self.add_module(f"layer{stage + 1}", layer)
        self.fc = nn.Linear(cin, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class StemA(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = Conv(cin, cout, 3, stride, False, norm == "bf")
        self.bn1 = nn.BatchNorm2d(cout) if norm == "bn" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv1(x))


class BlockA(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int, betas: tuple[float, float], norm: str, binary: bool) -> None:
        super().__init__()
        bf = norm == "bf"

        def batch_norm(channels: int) -> nn.Module:
            return nn.BatchNorm2d(channels) if norm == "bn" else nn.Identity()

        self.alpha, (self.beta1, self.beta2) = (ALPHA, betas) if bf else (1.0, (1.0, 1.0))
        self.stride, self.same = stride, cin == cout
        self.move11 = Bias(cin)
        self.binary_3x3 = Conv(cin, cin, 3, stride, binary, bf)
        self.bn1 = batch_norm(cin)
        self.move12, self.prelu1, self.move13 = Bias(cin), nn.PReLU(cin), Bias(cin)
        self.move21 = Bias(cin)
        if self.same:
            self.binary_pw, self.bn2 = Conv(cin, cin, 1, 1, binary, bf), batch_norm(cin)
        else:
            self.binary_pw_down1, self.bn2_1 = Conv(cin, cin, 1, 1, binary, bf), batch_norm(cin)
            self.binary_pw_down2, self.bn2_2 = Conv(cin, cin, 1, 1, binary, bf), batch_norm(cin)
        self.move22, self.prelu2, self.move23 = Bias(cout), nn.PReLU(cout), Bias(cout)

    def forward(self, x: Tensor) -> Tensor:
        x_in = x * self.beta1
        branch = self.alpha * self.bn1(self.binary_3x3(soft_sign(self.move11(x_in))))
        shortcut = x if self.stride == 1 else F.avg_pool2d(x_in, 2, 2)
        first = self.move13(self.prelu1(self.move12(shortcut + branch)))
        bits = soft_sign(self.move21(first * self.beta2))
        if self.same:
            second = self.alpha * self.bn2(self.binary_pw(bits)) + first
        else:
            one = self.alpha * self.bn2_1(self.binary_pw_down1(bits)) + first
            two = self.alpha * self.bn2_2(self.binary_pw_down2(bits)) + first
            second = torch.cat([one, two], 1)
        return self.move23(self.prelu2(self.move22(second)))


class PublicA(nn.Module):
    def __init__(
        self,
        norm: str,
        binary: bool,
        num_classes: int = 1000,
        imagenet: bool = True,
        width: int = 32,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.feature = nn.ModuleList([StemA(in_channels, width, 2 if imagenet else 1, norm)])
        multiples = [1, 2, 4, 4, 8, 8, 16, 16, 16, 16, 16, 16, 32, 32]
        for block, betas in enumerate(BETAS_A, start=1):
            cin, cout = width * multiples[block - 1], width * multiples[block]
            self.feature.append(BlockA(cin, cout, 2 if block in (2, 4, 6, 12) else 1, betas, norm, binary))
        self.fc = nn.Linear(width * 32, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.feature:
            x = layer(x)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
