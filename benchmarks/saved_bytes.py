"""Bytes that a forward pass keeps for the backward pass: lean, plain composition, batch-norm twin.

    python benchmarks/saved_bytes.py [--no_imagenet]

Unique storages that autograd saves, parameters and buffers excluded; deterministic. The baseline is
`plain_reactnet.py`. The rows of the batch-norm twin run our own network with `norm="batch_norm"`, lean where it can be.
"""

from __future__ import annotations

import argparse

import torch
from plain_reactnet import networks
from torch import nn

from bnfree.saved_memory import measure_saved_memory

MIB = 2**20


def per_image(network: nn.Module, size: int, batch: int) -> float:
    """MiB per image in a batch of `batch`, from two small batches: the weights' share does not depend on it."""
    images = torch.randn(4, 3, size, size)
    two, four = (measure_saved_memory(network, images[:count].clone()).total for count in (2, 4))
    growth = (four - two) / 2
    return (growth + (two - 2 * growth) / batch) / MIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no_imagenet", action="store_true", help="leave out ReActNetA at 224 pixels")
    cases = [("ReActNet18", 32, {}), ("ReActNetA", 224, {"num_classes": 1000})]
    for name, size, options in cases[: 1 if parser.parse_args().no_imagenet else 2]:
        network, plain = networks(name, **options)
        twin, plain_twin = networks(name, "batch_norm", **options)
        lean, baseline, twin_lean, twin_baseline = (per_image(n, size, 64) for n in (network, plain, twin, plain_twin))
        network.lean = False
        modules = per_image(network, size, 64)
        print(f"{name}, {size} pixels, batch of 64, MiB per image:")
        print(f"  plain composition {baseline:.2f}, our modules (lean=False) {modules:.2f}, lean {lean:.3f}")
        print(f"  batch-norm twin: plain composition {twin_baseline:.2f}, ours {twin_lean:.3f}")
        print(f"  P1  plain / lean: {baseline / lean:.2f}x")
        print(f"  P11 lean / our twin: {lean / twin_lean:.3f}")


if __name__ == "__main__":
    main()
