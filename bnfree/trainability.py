"""Two scores of a network that is not trained: how well it can be trained, and how finely it tells inputs apart.

Source: Chen, Gong and Wang, "Neural architecture search on ImageNet in four GPU hours" (TE-NAS, ICLR 2021, arXiv
2102.11535). Deviation: the patterns are those of the binary activations themselves, and the gradients go through their
surrogate, so that ranks of binary networks by these scores are an experiment.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bnfree.binarize import RSign
from bnfree.data_scores import composed_of_operators

# Of the largest eigenvalue: what rounding leaves of one that is 0.
ROUNDING = 10


def gradient_condition(network: nn.Module, images: Tensor, chunk_size: int = 16) -> float:
    """The condition number of the tangent kernel: of the Gram matrix of each image's gradient of its logits' sum.

    Lower is easier to train. Infinite where two images have the same gradient, as equal ones have.

    Args:
        network: without batch norm in training mode; its mode, weights and gradients stay as they are.
        images: (N, C, H, W).
        chunk_size: images whose gradients are computed at a time; those of all are in memory.
    """
    parameters = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}

    def summed(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        logits: Tensor = torch.func.functional_call(network, parameters, (image[None],))
        return logits.sum()

    gradients = torch.func.vmap(torch.func.grad(summed), in_dims=(None, 0))
    gram = torch.zeros(len(images), len(images), dtype=torch.float64)
    with composed_of_operators(network):
        chunks = [gradients(parameters, some) for some in images.split(chunk_size)]
    for name in parameters:
        rows = torch.cat([chunk[name].flatten(1) for chunk in chunks]).double().cpu()
        gram += rows @ rows.T
    eigenvalues = torch.linalg.eigvalsh(gram)
    largest, smallest = float(eigenvalues[-1]), float(eigenvalues[0])
    dtype = next(iter(parameters.values())).dtype
    return largest / smallest if smallest > ROUNDING * torch.finfo(dtype).eps * largest else math.inf


def activation_patterns(network: nn.Module, images: Tensor) -> int:
    """The number of different patterns of all binary activations (and signs before ReLUs) that images give.

    Higher is more expressive; at most the number of different images.

    Args:
        network: its mode and weights stay as they are.
        images: (N, C, H, W).
    """
    patterns: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen = output if isinstance(module, RSign) else inputs[0]
        patterns.append((seen > 0).flatten(1).cpu())

    watched = [module for module in network.modules() if isinstance(module, RSign | nn.ReLU | nn.PReLU)]
    hooks = [module.register_forward_hook(keep) for module in watched]
    try:
        with torch.no_grad():
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return len(torch.unique(torch.cat(patterns, 1), dim=0)) if patterns else 1
