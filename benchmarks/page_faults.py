"""Page faults per training step on a CPU, with `bnfree.allocator.keep_freed_memory` and without; Linux with glibc only.

    python benchmarks/page_faults.py [--batch_size 128] [--threads 1]

A step is forward, backward, adaptive clipping and Adam of ReActNet18 on random 32x32 images. The setting lasts for the
life of a process, so each variant has one of its own; they take turns, step by step. Page faults and the largest memory
are counted by the kernel; a time is the least process CPU time of a step.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import torch
from torch.nn import functional as F

from bnfree.allocator import keep_freed_memory, page_faults
from bnfree.backbones import ReActNet18
from bnfree.clipping import adaptive_clip_grad_

VARIANTS = {"as it is": False, "freed memory kept": True}


def steps(keep: bool, batch_size: int, threads: int) -> None:
    """Does a step for every line on stdin, and answers with its faults, its seconds and the largest memory in MiB."""
    torch.set_num_threads(threads)
    if keep and not keep_freed_memory():
        sys.exit("The C library is not glibc: there is nothing to compare.")
    torch.manual_seed(0)
    network = ReActNet18()
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    images, labels = torch.randn(batch_size, 3, 32, 32), torch.arange(batch_size) % 10
    for _ in sys.stdin:
        faults, start = page_faults() or 0, time.process_time()
        F.cross_entropy(network(images), labels).backward()
        adaptive_clip_grad_(network.body.parameters())
        optimizer.step()
        optimizer.zero_grad()
        seconds, faults = time.process_time() - start, (page_faults() or 0) - faults
        print(faults, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7, help="the first three are not counted")
    parser.add_argument("--variant", choices=("keep", "give_back"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant is not None:
        steps(options.variant == "keep", options.batch_size, options.threads)
        return
    processes = {}
    for name, keep in VARIANTS.items():
        command = [sys.executable, __file__, "--variant", "keep" if keep else "give_back"]
        command += ["--batch_size", str(options.batch_size), "--threads", str(options.threads)]
        processes[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in VARIANTS}
    for _ in range(options.rounds):
        for name, process in processes.items():
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            rows[name].append(tuple(float(word) for word in process.stdout.readline().split()))
    for process in processes.values():
        process.communicate()
    results = {}
    for name, measured in rows.items():
        faults, seconds, memory = zip(*measured[3:], strict=True)
        results[name] = (sum(faults) / len(faults), min(seconds))
        print(f"{name:<18} {results[name][0]:10,.0f} faults/step  {min(seconds):6.2f} s/step  {max(memory):6,.0f} MiB")
    before, after = results.values()
    print(f"{before[0] / max(after[0], 1):,.0f}x fewer page faults, {before[1] / after[1]:.2f}x the speed")


if __name__ == "__main__":
    main()
