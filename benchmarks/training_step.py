"""Time of a training step of ReActNet18 at 32 pixels: lean, plain composition, batch-norm twin.

    python benchmarks/training_step.py [--batch_size 64] [--rounds 5]

A step is forward, backward, adaptive gradient clipping and Adam, the same for all. Variants run in turn in one process
on one thread; a time is the least process CPU time of several rounds. Exact gradients throughout: 8-bit forward
convolutions of signs give the same bits.
"""

from __future__ import annotations

import argparse
import os
import time

import torch
from plain_reactnet import networks
from torch import Tensor, nn
from torch.nn import functional as F

from bnfree.clipping import adaptive_clip_grad_
from bnfree.lean.fast import int8_works


class Step:
    """One training step of a network."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.optimizer = torch.optim.Adam(network.parameters(), lr=1e-5, fused=True)
        classifier = {id(p) for p in network.classifier.parameters()}
        self.clipped = [p for p in network.parameters() if id(p) not in classifier]

    def __call__(self, images: Tensor, labels: Tensor) -> float:
        """Seconds of process CPU time."""
        start = time.process_time()
        self.optimizer.zero_grad()
        F.cross_entropy(self.network(images), labels).backward()
        adaptive_clip_grad_(self.clipped, 0.02)
        self.optimizer.step()
        return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="names of the variants besides the plain composition")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    images, labels = torch.randn(arguments.batch_size, 3, 32, 32), torch.arange(arguments.batch_size) % 10
    network, plain = networks("ReActNet18")
    variants = {"plain composition": plain, "lean": network, "our modules (lean=False)": networks("ReActNet18")[0]}
    variants["our modules (lean=False)"].lean = False
    if int8_works():
        variants["lean, int8_forward"] = networks("ReActNet18", fast=["int8_forward"])[0]
    variants["batch-norm twin"], variants["plain batch-norm twin"] = networks("ReActNet18", "batch_norm")
    if arguments.only is not None:
        variants = {name: v for name, v in variants.items() if name in ("plain composition", *arguments.only)}
    steps = {name: Step(variant) for name, variant in variants.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(arguments.rounds):
        for name, step in steps.items():
            times[name].append(step(images, labels))
    least = {name: min(seconds) for name, seconds in times.items()}
    load = os.getloadavg()[0]
    print(f"batch of {arguments.batch_size}, CPU seconds a step, least of {arguments.rounds} (load {load:.1f})")
    for name, seconds in least.items():
        print(f"  {name:26} {seconds:.3f}   {least['plain composition'] / seconds:.2f}x the plain composition's speed")
    if "batch-norm twin" in least:
        print(f"  P11 lean / our batch-norm twin: {least['lean'] / least['batch-norm twin']:.2f}")


if __name__ == "__main__":
    main()
