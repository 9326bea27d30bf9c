"""Random weights for the public networks, and the files in which their training scripts would save them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .public_networks import Bias, Conv, Public18, PublicA


@torch.no_grad()
def randomize(network: nn.Module, seed: int = 0) -> None:
    """Spread-out weights, gains and slopes of both signs, shifts and running statistics that matter."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor, mean: float, std: float) -> None:
        tensor.copy_(mean + std * torch.randn(tensor.shape, generator=generator))

    for module in network.modules():
        if isinstance(module, Conv):
            # With batch norm, scale is free, and weights beyond 1 show that the clamp's gradient is right.
            normal(module.weight, 0.1, 0.7 if not module.scaled else 1.0)
            # The sign of 0 is our one deviation from the published values, and among 10^7 normal floats one is 0.
            module.weight[module.weight == 0] = 0.1
            if module.scaled:
                normal(module.gain, 0.2, 1.0)
        elif isinstance(module, Bias):
            normal(module.bias, 0.0, 0.3)
        elif isinstance(module, nn.PReLU):
            normal(module.weight, 0.6, 0.3)
        elif isinstance(module, nn.BatchNorm2d):
            normal(module.weight, 0.4, 0.2)
            normal(module.bias, 0.0, 0.2)
    if any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        estimate_statistics(network, generator)
    elif not any(getattr(module, "scaled", False) for module in network.modules()):
        for module in network.modules():
            if isinstance(module, Conv):
                module.weight.mul_(0.5 / module.weight[0].numel() ** 0.5)
        centre(network, generator)


@torch.no_grad()
def centre(network: nn.Module, generator: torch.Generator) -> None:
    """RPReLU shifts that balance their input: without normalisation the trunk drifts until no slope is ever used."""

    def balance(module: Bias, inputs: tuple[Tensor]) -> None:
        mean = inputs[0].mean((0, 2, 3), keepdim=True)
        module.bias.copy_(-mean + 0.2 * torch.randn(mean.shape, generator=generator))

    names = {"move1", "move12", "move22"}
    hooks = [
        module.register_forward_pre_hook(balance)
        for name, module in network.named_modules()
        if name.rpartition(".")[2] in names
    ]
    channels = next(network.parameters()).shape[1]
    network(torch.randn(4, channels, 64, 64, generator=generator))
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def estimate_statistics(network: nn.Module, generator: torch.Generator) -> None:
    """Running statistics near those of random images: others would send the trunk far from the window |x| < 1."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in norms:
        module.momentum = 1.0
    channels = next(network.parameters()).shape[1]
    network.train()(torch.randn(4, channels, 64, 64, generator=generator))
    for module in norms:
        module.momentum = 0.1
        module.running_mean.add_(0.1 * torch.randn(module.running_mean.shape, generator=generator))
        module.running_var.mul_(0.8 + 0.4 * torch.rand(module.running_var.shape, generator=generator)).add_(0.05)


def randomized(architecture: str, norm: str, binary: bool, **options: object) -> nn.Module:
    network = {"18": Public18, "A": PublicA}[architecture](norm, binary, **options)
    randomize(network)
    return network


def public_file(network: nn.Module) -> dict[str, object]:
    """What the published training script saves, reduced to the kinds of values in it."""
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([parameter])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 - epoch / 256)
    parameter.sum().backward()
    optimizer.step()
    return {
        "epoch": 7,
        "state_dict": {f"module.{key}": value for key, value in network.state_dict().items()},
        "best_top1_acc": torch.tensor(61.5),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
    }
