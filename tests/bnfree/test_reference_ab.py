"""A&B BNN's checkpoints against its formulas, in names and shapes of its files."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnfree.activations import PowerOfTwoRPReLU
from bnfree.packing import pack
from bnfree.reference import is_public_checkpoint, load_checkpoint

from .public_networks import Bias, Conv

ALPHA = 0.25


class Slopes(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.L_alpha = nn.Parameter(-3 + 2 * torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        rounded = self.L_alpha + (self.L_alpha.round() - self.L_alpha).detach()
        return F.prelu(x, 2.0**rounded)


def sign(x: Tensor) -> Tensor:
    soft = 2 * torch.sigmoid(3 * x)
    return torch.where(x >= 0, 1.0, -1.0).to(x).detach() - soft.detach() + soft


class Block18(nn.Module):
    def __init__(self, cin: int, cout: int, beta: float) -> None:
        super().__init__()
        self.beta = beta
        self.move0, self.conv1 = Bias(cin), Conv(cin, cout, 3, 1 if cin == cout else 2, True, True)
        self.move1, self.prelu, self.move2 = Bias(cout), Slopes(cout), Bias(cout)
        self.downsample = None
        if cin != cout:
            self.downsample = nn.Sequential(nn.AvgPool2d(2, 2), Conv(cin, cout, 1, 1, True, True))

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv1(sign((x + self.move0.bias / self.beta) * self.beta))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.move2(self.prelu(self.move1(branch * ALPHA + shortcut)))


class AB18(nn.Module):
    def __init__(self, depths: list[int], width: int = 4) -> None:
        super().__init__()
        self.conv1 = Conv(3, width, 3, 1, False, True)
        variance, cin = 1.0, width
        for stage, blocks in enumerate(depths):
            layer, cout = nn.Sequential(), width * 2**stage
            for block in range(blocks):
                if block == 0:
                    beta, variance = variance**-0.5, 1.0
                else:
                    beta = variance**-0.5
                    variance += ALPHA**2
                layer.append(Block18(cin, cout, beta))
                cin = cout
            self.add_module(f"layer{stage + 1}", layer)
        self.fc = nn.Linear(cin, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.fc(x.mean((2, 3)))


class BlockA(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int, betas: tuple[float, float]) -> None:
        super().__init__()
        self.stride, self.betas = stride, betas
        self.move11, self.binary_3x3, self.move12 = Bias(cin), Conv(cin, cin, 3, stride, True, True), Bias(cin)
        self.prelu1, self.move13, self.move21 = Slopes(cin), Bias(cin), Bias(cin)
        if cin == cout:
            self.binary_pw = Conv(cin, cin, 1, 1, True, True)
        else:
            self.binary_pw_down1, self.binary_pw_down2 = (Conv(cin, cin, 1, 1, True, True) for _ in range(2))
        self.move22, self.prelu2, self.move23 = Bias(cout), Slopes(cout), Bias(cout)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.betas
        branch = self.binary_3x3(sign((x + self.move11.bias / first) * first))
        shortcut = F.avg_pool2d(x, 2, 2) if self.stride == 2 else x
        x = self.move13(self.prelu1(self.move12(shortcut + branch * ALPHA)))
        signs = sign((x + self.move21.bias / second) * second)
        if hasattr(self, "binary_pw"):
            x = self.binary_pw(signs) * ALPHA + x
        else:
            x = torch.cat([layer(signs) * ALPHA + x for layer in (self.binary_pw_down1, self.binary_pw_down2)], 1)
        return self.move23(self.prelu2(self.move22(x)))


class ABA(nn.Module):
    def __init__(self, width: int = 2) -> None:
        super().__init__()
        multiples = [1, 2, 4, 4, 8, 8] + [16] * 6 + [32] * 2
        stem = nn.Module()
        stem.conv1 = Conv(3, width, 3, 1, False, True)
        self.feature = nn.ModuleList([stem])
        variance = 1.0
        for before, after in pairwise(multiples):
            stride = 2 if after != before and after != 2 else 1
            betas = variance**-0.5, (variance + ALPHA**2) ** -0.5
            self.feature.append(BlockA(before * width, after * width, stride, betas))
            variance = 1.0 if stride == 2 else variance + 2 * ALPHA**2
        self.fc = nn.Linear(32 * width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.feature[0].conv1(x)
        for block in list(self.feature)[1:]:
            x = block(x)
        return self.fc(x.mean((2, 3)))


@torch.no_grad()
def scattered(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, Conv):
            module.weight.normal_()
            module.gain.add_(0.3 * torch.randn_like(module.gain))
        elif isinstance(module, Bias):
            module.bias.normal_(0, 0.3)
    return network.double()


@pytest.mark.parametrize("name", ["18", "34", "A"])
def test_a_file_of_ab_computes_what_its_formulas_do(name, tmp_path):
    public = scattered({"18": lambda: AB18([4] * 4), "34": lambda: AB18([6, 8, 12, 6], 2), "A": ABA}[name]())
    state = {f"module.{key}": value.float() for key, value in public.state_dict().items()}
    torch.save(state, tmp_path / "max_acc_step2.h5")
    assert is_public_checkpoint(state)
    public.load_state_dict({key.removeprefix("module."): value.double() for key, value in state.items()})
    ours = load_checkpoint(tmp_path / "max_acc_step2.h5", stem="cifar").double()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    expected, found = public(x), ours(x)
    assert (found - expected).abs().max() <= 1e-9 * expected.abs().max()
    assert {type(unit.rprelu) for unit in ours.modules() if hasattr(unit, "rprelu")} == {PowerOfTwoRPReLU}
    # It packs, and its slopes are powers of two.
    packed = pack(ours.float(), "float32", engine="torch")
    assert (packed(x.float()) - expected).abs().max() <= 1e-3 * expected.abs().max()
    for unit in packed.layers.units:
        assert torch.equal(unit.rprelu[1], unit.rprelu[1].log2().round().exp2())


def test_gradients_are_those_of_the_formulas_up_to_the_window_at_transitions():
    public = scattered(AB18([2, 1, 1, 1]))
    # With beta 1 at transitions nothing differs.
    for block in public.modules():
        if isinstance(block, Block18) and block.downsample is not None:
            block.beta = 1.0
            block.move0.bias.data.zero_()
    ours = load_checkpoint({key: value.float() for key, value in public.state_dict().items()}).double()
    public.load_state_dict({key: value.float().double() for key, value in public.state_dict().items()})
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for network in (public, ours):
        network(x).square().sum().backward()
    for found, expected in (
        (ours.body[0][1].rprelu.exponent, public.layer1[1].prelu.L_alpha),
        (ours.body[3][0].rprelu.exponent, public.layer4[0].prelu.L_alpha),
        (ours.body[0][0].rsign.shift, public.layer1[0].move0.bias),
    ):
        assert torch.allclose(found.grad, expected.grad.flatten(), rtol=1e-6)
