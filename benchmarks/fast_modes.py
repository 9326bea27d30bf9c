"""Fast modes of lean training: speed, error of gradients, bytes kept, and with `--accuracy` what training makes of it.

    python benchmarks/fast_modes.py [--batch_size 64] [--rounds 5] [--no_numba]
    python benchmarks/fast_modes.py --accuracy DIR

Speed as in `training_step.py`, bytes as in `saved_bytes.py`. The error of a gradient is the norm of its difference from
that without fast modes, over its norm, for each parameter of ReActNet18 with spread-out weights; where an error says
"the same bits", every gradient is equal. `--accuracy` runs `bnfree fit --config configs/cifar10_small.yaml` on the
images in DIR (as that file says) without and with all modes, for each seed, and prints the test accuracy; finished
runs are not repeated.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from metrics_file import last_percent
from plain_reactnet import networks
from saved_bytes import per_image
from torch import Tensor, nn
from torch.nn import functional as F
from training_step import Step

from bnfree.errors import InputError
from bnfree.lean import kernels
from bnfree.lean.fast import FAST_MODES, check_available

ROOT = Path(__file__).parents[1]


def offered(among: Sequence[str] = FAST_MODES) -> list[str]:
    """Those modes that work here."""
    modes = []
    for mode in among:
        try:
            check_available([mode])
            modes.append(mode)
        except InputError as error:
            print(error)
    return modes


def combinations(modes: list[str]) -> list[list[str]]:
    """No mode, each by itself, the two for speed, and all."""
    pair = [mode for mode in ("int8_forward", "bf16_backward") if mode in modes]
    chosen = [[], *([mode] for mode in modes), pair, modes]
    return [c for i, c in enumerate(chosen) if c not in chosen[:i]]


def speed(cases: list[list[str]], batch_size: int, rounds: int) -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(batch_size, 3, 32, 32), torch.arange(batch_size) % 10
    steps = {"plain composition": Step(networks("ReActNet18")[1])}
    for case in cases:
        steps[" + ".join(["lean", *case])] = Step(networks("ReActNet18", fast=case)[0])
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(step(images, labels))
    least = {name: min(seconds) for name, seconds in times.items()}
    print(f"P3: batch of {batch_size}, CPU seconds a step, least of {rounds} (load {os.getloadavg()[0]:.1f})")
    for name, seconds in least.items():
        print(f"  {name:55} {seconds:.3f}   {least['plain composition'] / seconds:.2f}x")


def gradients(network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    F.cross_entropy(network(images), labels).backward()
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


def errors(cases: list[list[str]], batch_size: int) -> None:
    network = networks("ReActNet18")[0]
    images, labels = torch.randn(batch_size, 3, 32, 32), torch.arange(batch_size) % 10
    exact = gradients(network, images, labels)
    print(f"Relative errors of the gradients of {len(exact)} parameters, batch of {batch_size}")
    for case in cases[1:]:
        network.fast = case
        found = gradients(network, images, labels)
        relative = sorted(((found[name] - exact[name]).norm() / exact[name].norm()).item() for name in exact)
        words = f"median {statistics.median(relative):.1e}, worst {relative[-1]:.1e}" if relative[-1] else "same bits"
        print(f"  {' + '.join(case):55} {words}")


def saved(modes: list[str]) -> None:
    network, plain = networks("ReActNet18")
    baseline = per_image(plain, 32, 64)
    print(f"P1: MiB kept per image, batch of 64: plain composition {baseline:.2f}")
    for case in ([], [mode for mode in modes if mode == "half_saved"]):
        network.fast = case
        kept = per_image(network, 32, 64)
        print(f"  {' + '.join(['lean', *case]):55} {kept:.3f}   {baseline / kept:.1f}x fewer")


def accuracy(modes: list[str], data_dir: str, output: Path, seeds: list[int]) -> None:
    command = [sys.executable, "-m", "bnfree", "fit"]
    command += ["--config", str(ROOT / "configs/cifar10_small.yaml"), f"--data.data_dir={data_dir}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    reached: dict[str, list[float]] = {}
    for seed in seeds:
        for name, case in {"exact": [], "all fast modes": modes}.items():
            folder = output / f"{name.replace(' ', '_')}-seed{seed}"
            if last_percent(folder, "test/acc") is None:
                options = [f"--run_dir={folder}", f"--seed_everything={seed}", f"--data.seed={seed}"]
                options += [f"--model.backbone.fast=[{','.join(case)}]"]
                subprocess.run([*command, *options], env=environment, check=True)
            found = last_percent(folder, "test/acc")
            assert found is not None
            reached.setdefault(name, []).append(found)
    for name, values in reached.items():
        each = " / ".join(f"{value:.2f}" for value in values)
        spread = f", standard deviation {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        print(f"{name:15} {each} %   mean {statistics.mean(values):.2f}{spread}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no_numba", action="store_true", help="elementwise work by torch alone")
    parser.add_argument("--accuracy", metavar="DIR", help="only train, on the images in DIR")
    parser.add_argument("--output", type=Path, default=Path("runs/fast_modes"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    kernels.enabled = not arguments.no_numba
    modes = offered()
    if arguments.accuracy:
        accuracy(modes, arguments.accuracy, arguments.output, arguments.seeds)
        return
    torch.set_num_threads(1)
    saved(modes)
    errors(combinations(modes), arguments.batch_size)
    speed(combinations(modes), arguments.batch_size, arguments.rounds)


if __name__ == "__main__":
    main()
