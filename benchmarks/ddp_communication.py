"""What communication costs data-parallel training: steps with the all-reduce of gradients and without, two processes.

    python benchmarks/ddp_communication.py [--batch_size 64]

A step is forward, backward, adaptive clipping and Adam of ReActNet18 on random 32x32 images, in two processes of one
thread each that talk through gloo. Steps with and without `no_sync` take turns in the same processes, since a single
process is no fair partner where other work runs; both processes start a step together, and the slower one's wall time
counts. The printed ratio t(no_sync) / t(sync) is 1 where communication is free. At the end the processes train some
steps, each on images of its own, and their parameters are compared bit by bit.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from contextlib import nullcontext

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from bnfree.backbones import ReActNet18
from bnfree.clipping import adaptive_clip_grad_

PROCESSES = 2


class Training:
    """One process's copy of the network, and its images."""

    def __init__(self, rank: int, batch_size: int) -> None:
        torch.manual_seed(0)
        self.network = DistributedDataParallel(ReActNet18())
        self.optimizer = torch.optim.Adam(self.network.parameters(), fused=True)
        generator = torch.Generator().manual_seed(rank)
        self.images = torch.randn(batch_size, 3, 32, 32, generator=generator)
        self.labels = torch.randint(0, 10, (batch_size,), generator=generator)

    def step(self, synchronised: bool) -> float:
        """Seconds of a step of the slower process."""
        dist.barrier()
        start = time.perf_counter()
        with nullcontext() if synchronised else self.network.no_sync():
            F.cross_entropy(self.network(self.images), self.labels).backward()
        adaptive_clip_grad_(self.network.module.body.parameters())
        self.optimizer.step()
        self.optimizer.zero_grad()
        seconds = torch.tensor(time.perf_counter() - start)
        dist.all_reduce(seconds, dist.ReduceOp.MAX)
        return float(seconds)

    def difference(self) -> float:
        """Largest difference of a parameter between the processes; NaN if one of them holds a NaN."""
        largest = torch.zeros(())
        for parameter in self.network.parameters():
            first = parameter.detach().clone()
            dist.broadcast(first, src=0)
            largest = torch.maximum(largest, (parameter.detach() - first).abs().max())
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return float(largest)


def work(rank: int, store: str, batch_size: int, rounds: int, steps: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES)
    timed = Training(rank, batch_size)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(rounds + 1):
        for synchronised in seconds:
            seconds[synchronised].append(timed.step(synchronised))
    training = Training(rank, batch_size)
    for _ in range(steps):
        training.step(synchronised=True)
    same, drifted = training.difference(), timed.difference()
    if rank == 0:
        with_sync, without = (sorted(seconds[synchronised][1:]) for synchronised in (True, False))
        print(f"load average {os.getloadavg()[0]:.1f}, batch {batch_size} on each of {PROCESSES} processes")
        for name, values in (("with all-reduce", with_sync), ("no_sync", without)):
            print(f"{name:<16} best {values[0]:.3f} s  median {statistics.median(values):.3f} s")
        print(
            f"t(no_sync) / t(sync): best {without[0] / with_sync[0]:.3f}, "
            f"median {statistics.median(without) / statistics.median(with_sync):.3f}"
        )
        print(f"largest difference between the processes after {steps} steps: {same}")
        print(f"and after the timed ones, half of which left it out: {drifted:.2g}")
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=5, help="steps after which the processes are compared")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        arguments = (f"{folder}/store", options.batch_size, options.rounds, options.steps)
        mp.spawn(work, arguments, nprocs=PROCESSES)


if __name__ == "__main__":
    main()
