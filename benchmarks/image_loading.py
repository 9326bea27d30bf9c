"""Images per second of the training pipeline: read, decode, crop, flip, lighting, batch, normalise.

    python benchmarks/image_loading.py DIR [--image_size 224] [--num_workers 0 2]

DIR holds train/<class>/*.jpg. The settings run in turn, several rounds; the best round counts. CPU time, of the process
and its workers, says what an image costs also where other work runs; wall time depends on what that leaves. Linux only.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch

from bnfree.datamodules import ImageFolderDataModule


def cpu_seconds(process: str = "self") -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def worker_seconds() -> float:
    children = Path("/proc/self/task").glob("*/children")
    return sum(cpu_seconds(child) for path in children for child in path.read_text().split())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=63)
    parser.add_argument("--num_workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--min_images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    modules = {
        workers: ImageFolderDataModule(
            options.data_dir, options.batch_size, val_split=0, image_size=options.image_size, num_workers=workers
        )
        for workers in options.num_workers
    }
    loaders = {workers: data.train_dataloader() for workers, data in modules.items()}
    best: dict[int, list[float]] = {workers: [0.0, float("inf")] for workers in modules}
    epoch = 0
    for round_number in range(options.rounds + 1):
        for workers, data in modules.items():
            images, wall, cpu = 0, time.perf_counter(), cpu_seconds() + worker_seconds()
            # All workers are alive from the first round on, so theirs is a difference too.
            while images < options.min_images:
                loaders[workers].sampler.set_epoch(epoch := epoch + 1)
                images += sum(len(data.on_after_batch_transfer(batch, 0)[0]) for batch in loaders[workers])
            wall, cpu = time.perf_counter() - wall, cpu_seconds() + worker_seconds() - cpu
            if round_number:
                best[workers] = [max(best[workers][0], images / wall), min(best[workers][1], cpu / images)]
    for workers, (rate, cost) in best.items():
        print(f"num_workers={workers}: {rate:7.0f} images/s (wall), {1e3 * cost:.2f} ms of CPU time per image")
    first, *rest = options.num_workers
    for workers in rest:
        print(f"{workers} workers against {first}: {best[workers][0] / best[first][0]:.2f}x the images per second")
    for data in modules.values():
        data.teardown("fit")


if __name__ == "__main__":
    main()
