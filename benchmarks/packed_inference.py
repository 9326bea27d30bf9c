"""Packed networks against float32 and int8 ones, on one thread of a CPU, one image at a time.

    python benchmarks/packed_inference.py [--rounds 15] [--no_compile]

First the binary 3x3 convolutions of ReActNet18, then first layers and whole networks; random weights and images. What
is compared runs in turn in one process: a time is process CPU time of one call, the least and the median over rounds.
Before that, results are compared: sums of signs must be equal, and classes the same.

The packed convolution runs from bits to bits: shortcut, RPReLU and the comparisons of the next unit are in its time,
while that of the others is for sums alone. oneDNN's weights are prepacked; its int8 convolution takes uint8 activations
0 and 2 with 1 as their zero point. Networks run on a normalised image, and packed ones also on the 8-bit image that it
was made of (`pixels`), which spares them the normalisation that is in nobody's time. Networks with frozen weights
neither standardise nor binarise any; compiled ones are compiled by torch.compile with `freezing`, which takes about a
minute each.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch._inductor.config
from packed_inference_parts import Stem, Unit, float32_convolution, int8_convolution, popcount_peak
from torch import Tensor

from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.packing import NetworkInfo, PackedNetwork, pack
from bnfree.packing.engines import is_available
from bnfree.packing.pixels import Normalization
from bnfree.packing.unpacked_network import UnpackedNetwork

IMAGES = NetworkInfo(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
NORMALIZATION = Normalization(IMAGES.mean, IMAGES.std)
SEED = 1
SHAPES = [(64, 32), (128, 16), (256, 8), (512, 4), (64, 56), (128, 28), (256, 14), (512, 7)]
NETWORKS = {
    "ReActNet18 at 32": (lambda: ReActNet18(10, binary_shortcut=True), 32),
    "ReActNet18 at 224": (lambda: ReActNet18(1000, stem="imagenet", binary_shortcut=True), 224),
    "ReActNetA at 224": (lambda: ReActNetA(1000), 224),
}
# What one time is measured over, so that the clock's resolution does not matter.
SECONDS = 0.02


def measure(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """Least and median milliseconds of one call of each; the functions run in turn."""
    calls, times = {}, {name: [] for name in functions}
    for name, function in functions.items():
        function()
        start = time.process_time()
        function()
        calls[name] = max(1, round(SECONDS / max(1e-6, time.process_time() - start)))
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.process_time()
            for _ in range(calls[name]):
                function()
            times[name].append((time.process_time() - start) / calls[name] * 1e3)
    return {name: (min(values), statistics.median(values)) for name, values in times.items()}


def layers(rounds: int, peak: float) -> None:
    print("\n3x3 convolutions, ms (least, median); products/s of the packed one, and its share of the popcount's peak")
    worst: dict[str, float] = {}
    for channels, size in SHAPES:
        unit = Unit(channels, size)
        functions = {
            "float32": float32_convolution(unit.signs, unit.weight),
            "int8": int8_convolution(unit.signs, unit.weight),
            "packed": unit.run,
        }
        sums = unit.sums()
        for name in ("float32", "int8"):
            if not torch.equal(functions[name](), sums):
                raise SystemExit(f"{name} and packed sums differ at {channels} channels, {size}x{size}.")
        result = measure(functions, rounds)
        packed = result["packed"][0]
        ratios = {name: result[name][0] / packed for name in ("float32", "int8")}
        worst = {name: min(ratio, worst.get(name, ratio)) for name, ratio in ratios.items()}
        rate = 9 * channels**2 * size**2 / packed * 1e3
        columns = "  ".join(f"{name} {least:.3f} {median:.3f}" for name, (least, median) in result.items())
        print(
            f"{channels:4} channels {size:2}x{size:<2}  {columns}  {rate / 1e12:.2f}e12/s {rate / peak:4.0%}  "
            f"{ratios['float32']:.1f}x float32, {ratios['int8']:.1f}x int8"
        )
    print(f"worst shape: {worst['float32']:.1f}x float32, {worst['int8']:.1f}x int8; all sums equal")


def networks(rounds: int, compiled: bool) -> None:
    print("\nfirst layers and whole networks, ms (least, median)")
    for name, (build, size) in NETWORKS.items():
        torch.manual_seed(0)
        packed = pack(build().eval(), info=IMAGES, engine="numba")
        # On other images an activation on its threshold may turn over, and with it the class of a random network.
        generator = torch.Generator().manual_seed(SEED)
        pixels = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8, generator=generator)
        images = NORMALIZATION(pixels)
        stem = Stem(packed.layers.stem, pixels, NORMALIZATION)
        for part, (least, median) in measure({"float32": stem.run, "pixels": stem.run_pixels}, rounds).items():
            print(f"{name}, first layer: {part} {least:.4f} {median:.4f}")
        frozen = UnpackedNetwork(packed.layers).eval()
        versions: dict[str, Callable[[Tensor], Tensor]] = {"frozen": frozen}
        if compiled:
            torch._dynamo.reset()
            versions["compiled"] = torch.compile(frozen)
        if is_available("openvino"):
            versions["openvino"] = PackedNetwork(packed.layers, engine="openvino")
        versions["packed"] = packed
        logits = packed(images)
        for other, version in versions.items():
            difference = ((version(images) - logits).abs().max() / logits.abs().max()).item()
            if version(images).argmax() != logits.argmax():
                raise SystemExit(f"{name}: {other} names another class; logits differ by {difference:.1e}.")
        runs = {key: partial(version, images) for key, version in versions.items()}
        runs["pixels"] = partial(packed, pixels)
        if packed(pixels).argmax() != logits.argmax():
            raise SystemExit(f"{name}: the 8-bit image gets another class.")
        result = measure(runs, rounds)
        columns = "  ".join(f"{key} {least:.3f} {median:.3f}" for key, (least, median) in result.items())
        ratios = ", ".join(f"{result[key][0] / result['packed'][0]:.2f}x {key}" for key in result if key != "packed")
        print(f"{name}: {columns}: {ratios}; same class")


def main() -> None:
    parser = argparse.ArgumentParser(description="Packed networks against float32 and int8 ones.")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of the interleaved measurement")
    parser.add_argument("--no_compile", action="store_true", help="leave torch.compile out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    # As an option of torch.compile it comes too late: the weights are inputs by then, and are not prepacked.
    torch._inductor.config.freezing = True
    print(f"{platform.machine()}, {os.cpu_count()} processors, load average {os.getloadavg()[0]:.1f}")
    peak = popcount_peak()
    print(f"popcount's peak: {peak / 1e12:.2f}e12 products/s (XOR, popcount and addition in registers alone)")
    layers(arguments.rounds, peak)
    networks(arguments.rounds, not arguments.no_compile)
    print(f"\nload average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
