"""RSign and the weight path, forward and backward; evaluation of one image with kept weights.

    python benchmarks/weight_path.py [--rounds 7] [--compile]

On one thread, variants in turn, least process CPU time. RSign works on (64, 64, 32, 32); the weight path on the 19
binary and real convolutions of ReActNet18's body; evaluation on the whole network at 32 pixels.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import torch
from plain_reactnet import Bias, PolynomialSign, ScaledConv2d, networks
from torch import nn
from torch.nn import functional as F

from bnfree.binarize import RSign
from bnfree.convolution import BinaryConv2d


def least(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Milliseconds of each variant."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            start = time.process_time()
            run()
            times[name].append(1e3 * (time.process_time() - start))
    return {name: min(seconds[1:]) for name, seconds in times.items()}


def rsign(rounds: int, compile: bool) -> dict[str, float]:
    x, incoming = torch.randn(64, 64, 32, 32).requires_grad_(), torch.randn(64, 64, 32, 32)
    modules = {"plain": nn.Sequential(Bias(64), PolynomialSign()), "lean": RSign(64)}
    if compile:
        modules["lean compiled"] = torch.compile(RSign(64), fullgraph=True)

    def run(module: nn.Module) -> None:
        torch.autograd.grad(module(x), [x, *module.parameters()], incoming)

    return least({name: lambda m=m: run(m) for name, m in modules.items()}, rounds)


def weight_path(rounds: int, compile: bool) -> dict[str, float]:
    network, plain = networks("ReActNet18")
    ours = [m for m in network.body.modules() if isinstance(m, BinaryConv2d)]
    theirs = [m for m in plain.body.modules() if isinstance(m, ScaledConv2d)]
    incoming = [torch.randn_like(m.weight) for m in ours]

    def of_theirs() -> None:
        # The weight that reaches the convolution, without the convolution.
        original = F.conv2d
        caught: list[torch.Tensor] = []
        F.conv2d = lambda x, weight, **_: caught.append(weight)
        try:
            for module in theirs:
                module(None)
        finally:
            F.conv2d = original
        torch.autograd.grad(caught, list(plain.body.parameters()), incoming, allow_unused=True)

    def of_ours(path: Callable[[], list[torch.Tensor]]) -> Callable[[], None]:
        return lambda: torch.autograd.grad(path(), list(network.body.parameters()), incoming, allow_unused=True)

    variants = {"plain": of_theirs, "lean": of_ours(lambda: [m.effective_weight() for m in ours])}
    if compile:
        # Layer by layer: as one graph the 19 take minutes to compile.
        torch._dynamo.config.recompile_limit = 2 * len(ours)
        paths = [torch.compile(m.effective_weight, fullgraph=True, dynamic=False) for m in ours]
        variants["lean compiled"] = of_ours(lambda: [path() for path in paths])
    return least(variants, rounds)


def evaluation(rounds: int) -> dict[str, float]:
    network, plain = (n.eval() for n in networks("ReActNet18"))
    image = torch.randn(1, 3, 32, 32)

    def prepare_again() -> None:
        network.eval()
        network(image)

    with torch.no_grad():
        variants = {"plain": lambda: plain(image), "lean": lambda: network(image)}
        kept = least(variants, rounds)
        kept["lean, weights prepared anew"] = least({"": prepare_again}, rounds)[""]
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="also under torch.compile, which takes minutes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parts = {
        "P5  RSign": rsign(arguments.rounds, arguments.compile),
        "P5  weight path": weight_path(arguments.rounds, arguments.compile),
        "P10 evaluation of one image": evaluation(arguments.rounds),
    }
    print(f"CPU milliseconds, least of {arguments.rounds} (load {os.getloadavg()[0]:.1f})")
    for name, times in parts.items():
        for variant, milliseconds in times.items():
            print(f"  {name}: {variant} {milliseconds:.1f}, {times['plain'] / milliseconds:.1f}x")


if __name__ == "__main__":
    main()
