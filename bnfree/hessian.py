"""How much the loss bends along the weights of each layer: which layers should stay real (HAWQ).

Source: Dong et al., "HAWQ: Hessian aware quantization of neural networks with mixed precision" (ICCV 2019, arXiv
1905.03696) for the top eigenvalue by power iteration, HAWQ-V2 (NeurIPS 2020, arXiv 1911.03852) for the trace by
Hutchinson's estimate. Deviation: layers are ranked by eigenvalue * ||w||^2, which a factor on the weights of a
standardised layer leaves as it is, where the eigenvalue alone goes with 1 / factor^2.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnfree.convolution import BinaryConv2d
from bnfree.data_scores import composed_of_operators
from bnfree.errors import InputError

PROBES = 8
ITERATIONS = 20
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Sensitivity:
    """The second derivative of the loss with respect to the weights of one layer."""

    eigenvalue: float
    """The one of largest size."""
    trace: float
    """Sum of all eigenvalues, estimated; a mean over the probes."""
    squared_norm: float
    """||w||^2."""
    parameters: int
    """Number of weights."""

    @property
    def scale_free(self) -> float:
        """eigenvalue * ||w||^2, by which layers are ranked."""
        return self.eigenvalue * self.squared_norm


def layer_sensitivities(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    names: Collection[str] | None = None,
    iterations: int = ITERATIONS,
    tolerance: float = TOLERANCE,
    probes: int = PROBES,
    seed: int = 0,
) -> dict[str, Sensitivity]:
    """The sensitivity of every convolution and linear layer, by name.

    Meant for a network with real weights, as after step 1 of a recipe: binary ones have the second derivative of their
    surrogate. One forward and backward pass, and for every layer up to `iterations` + `probes` more backward passes.

    Args:
        network: in evaluation mode within; its mode, weights and gradients stay as they are.
        images: (N, C, H, W), in the dtype of the network; all in memory at once.
        labels: int64 (N,).
        names: of the layers to look at; None: all.
        iterations: of the power iteration, at most.
        tolerance: relative change of the eigenvalue at which it ends before.
        probes: vectors of random signs for the trace.
        seed: of both kinds of vectors; the global random state is left alone.

    Raises:
        InputError: a network without such layers, or without those of the names.
    """
    layers = {
        name: module.weight
        for name, module in network.named_modules()
        if isinstance(module, BinaryConv2d | nn.Conv2d | nn.Linear) and (names is None or name in names)
    }
    if not layers:
        raise InputError(f"network={type(network).__name__} has no such convolution or linear layer to look at.")
    generator = torch.Generator().manual_seed(seed)
    training, wanted = network.training, {name: weight.requires_grad for name, weight in layers.items()}
    network.eval()
    try:
        for weight in layers.values():
            weight.requires_grad_()
        with composed_of_operators(network), torch.enable_grad():
            loss = F.cross_entropy(network(images), labels)
            gradients = torch.autograd.grad(
                loss, list(layers.values()), create_graph=True, allow_unused=True, materialize_grads=True
            )
            found = {}
            for (name, weight), gradient in zip(layers.items(), gradients, strict=True):
                hessian = _Hessian(gradient, weight, generator)
                squared_norm = float(weight.detach().square().sum())
                eigenvalue = hessian.top_eigenvalue(iterations, tolerance)
                found[name] = Sensitivity(eigenvalue, hessian.trace(probes), squared_norm, weight.numel())
            return found
    finally:
        network.train(training)
        for name, weight in layers.items():
            weight.requires_grad_(wanted[name])


def layers_to_keep_real(network: nn.Module, sensitivities: Mapping[str, Sensitivity], number: int) -> list[str]:
    """The binary layers that lose most by being binary, most sensitive first.

    Args:
        network: whose binary convolutions are looked at.
        sensitivities: from `layer_sensitivities` of the same network with real weights, say of step 1.
        number: how many.
    """
    candidates = [name for name, m in network.named_modules() if isinstance(m, BinaryConv2d) and m.binary_weights]
    return sorted(candidates, key=lambda name: sensitivities[name].scale_free, reverse=True)[:number]


class _Hessian:
    """Products of the second derivative with vectors of the shape of the weight."""

    def __init__(self, gradient: Tensor, weight: Tensor, generator: torch.Generator) -> None:
        self.gradient, self.weight, self.generator = gradient, weight, generator

    def _times(self, vector: Tensor) -> Tensor:
        if not self.gradient.requires_grad:
            return torch.zeros_like(vector)
        (product,) = torch.autograd.grad(
            self.gradient, self.weight, vector, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return product

    def _like_weight(self, drawn: Tensor) -> Tensor:
        return drawn.to(self.weight.device, self.weight.dtype)

    def top_eigenvalue(self, iterations: int, tolerance: float) -> float:
        vector = self._like_weight(torch.randn(self.weight.shape, generator=self.generator))
        vector = vector / torch.linalg.vector_norm(vector)
        eigenvalue = 0.0
        for _ in range(iterations):
            product = self._times(vector)
            before, eigenvalue = eigenvalue, float((product * vector).sum())
            norm = torch.linalg.vector_norm(product)
            if norm == 0 or abs(eigenvalue - before) <= tolerance * abs(eigenvalue):
                break
            vector = product / norm
        return eigenvalue

    def trace(self, probes: int) -> float:
        total = 0.0
        for _ in range(probes):
            drawn = torch.randint(0, 2, self.weight.shape, generator=self.generator)
            signs = self._like_weight(drawn * 2 - 1)
            total += float((self._times(signs) * signs).sum())
        return total / max(1, probes)
