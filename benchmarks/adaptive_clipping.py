"""Adaptive gradient clipping: grouped (`bnfree.clipping`) against a loop over tensors, on one thread of a CPU.

    python benchmarks/adaptive_clipping.py

The loop is the formula of the paper with one tensor after the other, as in timm and the public BN-free code: norms,
their quotient, and `where`. Both clip copies of the same gradients of ReActNet18, all but the classifier's, in turn; a
time is the least process CPU time of several rounds. Operations are those that PyTorch dispatches.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bnfree.backbones import ReActNet18
from bnfree.clipping import adaptive_clip_grad_

CLIP_FACTOR, EPS = 0.02, 1e-3
ROUNDS, CALLS = 7, 10


class OperationCount(TorchDispatchMode):
    """Counts what is dispatched, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def loop(parameters: list[Tensor]) -> None:
    for parameter in parameters:
        gradient = parameter.grad
        dims = tuple(range(1, parameter.dim()))
        limit = _norm(parameter, dims).clamp_(min=EPS).mul_(CLIP_FACTOR)
        norm = _norm(gradient, dims)
        clipped = gradient * (limit / norm.clamp(min=1e-6))
        gradient.copy_(torch.where(norm < limit, gradient, clipped))


def _norm(tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
    return tensor.norm(2, dim=dims, keepdim=True) if dims else tensor.norm(2)


def grouped(parameters: list[Tensor]) -> None:
    adaptive_clip_grad_(parameters, CLIP_FACTOR, EPS)


def parameters_with_gradients() -> list[Tensor]:
    """Of ReActNet18; the gradients of every third tensor are short, so that not all are clipped."""
    network = ReActNet18()
    for index, parameter in enumerate(network.parameters()):
        nn.init.normal_(parameter, std=0.1)
        parameter.grad = torch.randn_like(parameter) * (1e-4 if index % 3 == 0 else 1e-2)
    classifier = {id(parameter) for parameter in network.classifier.parameters()}
    return [parameter for parameter in network.parameters() if id(parameter) not in classifier]


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    parameters = parameters_with_gradients()
    gradients = [parameter.grad.clone() for parameter in parameters]
    variants: dict[str, Callable[[list[Tensor]], None]] = {"loop": loop, "grouped": grouped}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    operations: dict[str, int] = {}
    clipped: dict[str, list[Tensor]] = {}
    for round_number in range(ROUNDS + 1):
        for name, clip in variants.items():
            total = 0.0
            for _ in range(CALLS if round_number else 1):
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad.copy_(gradient)
                start = time.process_time()
                clip(parameters)
                total += time.process_time() - start
            seconds[name].append(total / CALLS)
            if round_number == 0:
                clipped[name] = [parameter.grad.clone() for parameter in parameters]
                with OperationCount() as counted:
                    clip(parameters)
                operations[name] = counted.count
    times = {name: min(values[1:]) for name, values in seconds.items()}
    difference = max(float((a - b).abs().max()) for a, b in zip(*clipped.values(), strict=True))
    changed = sum(not torch.equal(a, b) for a, b in zip(gradients, clipped["loop"], strict=True))
    print(f"{len(parameters)} tensors, {sum(p.numel() for p in parameters):,} numbers, {changed} tensors clipped")
    for name in variants:
        print(f"{name:<8} {1e3 * times[name]:7.2f} ms  {operations[name]:5} operations")
    print(
        f"grouped: {times['loop'] / times['grouped']:.2f}x the speed, "
        f"{operations['loop'] / operations['grouped']:.1f}x fewer operations, largest difference {difference}"
    )


if __name__ == "__main__":
    main()
