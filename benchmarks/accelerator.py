"""Memory, time and kernel launches of a training step on an accelerator: plain composition and lean training.

    python benchmarks/accelerator.py [--batch_size 512] [--compile] [--fast MODE ...]

ReActNet18 at 32 pixels; a step is forward, backward, adaptive gradient clipping and fused Adam. Variants run in turn in
one process: wall-clock time around synchronised steps, the least of several rounds; largest memory that PyTorch had
allocated above what it held before the step; kernels (on a CPU: operators) that the profiler saw in one step. With
`--device cpu` and a small batch it tells only that it runs.
"""

from __future__ import annotations

import argparse
import time

import torch
from plain_reactnet import networks
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from bnfree.clipping import adaptive_clip_grad_


class Step:
    """One training step of a network on a device."""

    def __init__(self, network: nn.Module, device: torch.device, mode: str | None = None) -> None:
        self.device = device
        self.network = network.to(device)
        classifier = {id(p) for p in network.classifier.parameters()}
        self.clipped = [p for p in network.parameters() if id(p) not in classifier]
        self.optimizer = torch.optim.Adam(network.parameters(), lr=1e-5, fused=True)
        self.call = self.network if mode is None else torch.compile(self.network, mode=mode)

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        """Forward, backward, clipping, optimizer."""
        self.optimizer.zero_grad()
        F.cross_entropy(self.call(images), labels).backward()
        adaptive_clip_grad_(self.clipped, 0.02)
        self.optimizer.step()

    def synchronize(self) -> None:
        """Waits for the device."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def seconds(self, images: Tensor, labels: Tensor) -> float:
        """Of one step."""
        self.synchronize()
        start = time.perf_counter()
        self(images, labels)
        self.synchronize()
        return time.perf_counter() - start

    def peak_bytes(self, images: Tensor, labels: Tensor) -> int | None:
        """Of one step, where the device counts them."""
        if self.device.type != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self(images, labels)
        self.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def launches(self, images: Tensor, labels: Tensor) -> int:
        """Of one step."""
        on_cuda = self.device.type == "cuda"
        with profile(activities=[ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU]) as profiler:
            self(images, labels)
            self.synchronize()
        return sum(event.count for event in profiler.key_averages())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action="store_true", help="also under torch.compile, which takes minutes")
    parser.add_argument("--fast", nargs="*", default=[], help="fast modes of one more variant")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    images = torch.randn(arguments.batch_size, 3, 32, 32, device=device)
    labels = torch.arange(arguments.batch_size, device=device) % 10
    lean, plain = networks("ReActNet18")
    steps = {"plain composition": Step(plain, device), "lean": Step(lean, device)}
    last = Step(networks("ReActNet18")[0].to(memory_format=torch.channels_last), device)
    steps["lean, channels last"] = last
    if arguments.fast:
        steps[f"lean, {', '.join(arguments.fast)}"] = Step(networks("ReActNet18", fast=arguments.fast)[0], device)
    if arguments.compile:
        steps["plain composition, compiled"] = Step(networks("ReActNet18")[1], device, "default")
        steps["lean, compiled"] = Step(networks("ReActNet18")[0], device, "default")
        steps["lean, compiled with graphs"] = Step(networks("ReActNet18")[0], device, "reduce-overhead")
    for _ in range(3):
        for step in steps.values():
            step(images, labels)
    memory = {name: step.peak_bytes(images, labels) for name, step in steps.items()}
    launches = {name: step.launches(images, labels) for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(arguments.rounds):
        for name, step in steps.items():
            times[name].append(step.seconds(images, labels))
    least = {name: min(seconds) for name, seconds in times.items()}
    name = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    print(f"{name}, torch {torch.__version__}, batch of {arguments.batch_size}, least of {arguments.rounds}")
    first = next(iter(steps))
    for variant in steps:
        line = f"  {variant:32} {1e3 * least[variant]:9.2f} ms ({least[first] / least[variant]:.2f}x)"
        line += f"  {launches[variant]:6} launches ({launches[first] / launches[variant]:.1f}x)"
        if memory[variant] is not None:
            line += f"  {memory[variant] / 2**20:8.0f} MiB ({memory[first] / memory[variant]:.2f}x)"
        print(line)


if __name__ == "__main__":
    main()
