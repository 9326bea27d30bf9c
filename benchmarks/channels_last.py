"""The channels-last format against the default, forward and backward, on one thread of a CPU.

    python benchmarks/channels_last.py

Both formats run in turn on the same weights and images; a time is the least process CPU time of several steps.
"""

from __future__ import annotations

import copy
import time
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnfree.backbones import ReActNet18, ReActNetA

CASES = {
    "ReActNet18, 16 x 32 x 32": (lambda: ReActNet18(10), (16, 3, 32, 32)),
    "ReActNet18, 4 x 224 x 224": (lambda: ReActNet18(1000, stem="imagenet"), (4, 3, 224, 224)),
    "ReActNetA, 4 x 224 x 224": (lambda: ReActNetA(1000), (4, 3, 224, 224)),
}
ROUNDS = 5


def step(network: nn.Module, images: Tensor, precision: str) -> float:
    start = time.process_time()
    with torch.autocast("cpu", torch.bfloat16) if precision == "bfloat16" else nullcontext():
        loss = F.cross_entropy(network(images), torch.zeros(len(images), dtype=torch.int64))
    loss.backward()
    seconds = time.process_time() - start
    network.zero_grad()
    return seconds


def main() -> None:
    torch.set_num_threads(1)
    for name, (build, shape) in CASES.items():
        default, images = build(), torch.randn(shape)
        converted = copy.deepcopy(default).to(memory_format=torch.channels_last)
        pairs = ((default, images), (converted, images.contiguous(memory_format=torch.channels_last)))
        for precision in ("float32", "bfloat16"):
            times: tuple[list[float], ...] = ([], [])
            for _ in range(ROUNDS + 1):
                for seconds, (network, batch) in zip(times, pairs, strict=True):
                    seconds.append(step(network, batch, precision))
            before, after = (min(seconds[1:]) for seconds in times)
            print(f"{name}, {precision}: {before:.3f} s, channels last {after:.3f} s: {before / after:.2f}x")


if __name__ == "__main__":
    main()
