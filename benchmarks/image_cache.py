"""Images per second from the files of an image folder, from `cache: jpeg256` and from `cache: raw`, and what changes.

    python benchmarks/image_cache.py DIR [--image_size 224]

DIR holds train/<class>/*.jpg. An image of training is read, decoded, cropped, resized, flipped; one of evaluation is
resized and its centre cropped. The three run in turn on the same images with the same draws, on one thread; a time is
the least process CPU time of several rounds. The caches are made in a temporary folder.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bnfree.datamodules import ImageFolderDataModule

KINDS = ("none", "jpeg256", "raw")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--max_images", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        compare(options, Path(folder))


def compare(options: argparse.Namespace, folder: Path) -> None:
    sources, size = {}, {}
    for kind in KINDS:
        start = time.process_time()
        data = ImageFolderDataModule(
            options.data_dir, val_split=0, image_size=options.image_size, cache=kind, cache_dir=str(folder)
        )
        sources[kind] = _source(data)
        total = len(sources[kind].labels)
        making = 1e3 * (time.process_time() - start) / total
        files = [Path(options.data_dir, sources[kind].name(index)) for index in range(total)]
        stored = files if kind == "none" else list(folder.glob(f"train-{kind}-*.data"))
        size[kind] = sum(path.stat().st_size for path in stored) / total / 1024
        print(f"{kind:<8} {size[kind]:6.1f} KiB per image" + ("" if kind == "none" else f", made in {making:.1f} ms"))
    indices = list(range(0, total, max(1, total // options.max_images)))[: options.max_images]
    for what in ("training", "evaluation"):
        seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        images: dict[str, Tensor] = {}
        for number in range(options.rounds + 1):
            for kind, source in sources.items():
                start = time.process_time()
                if what == "training":
                    read = [source.read_augmented(index, seed=0, epoch=number)[0] for index in indices]
                else:
                    read = [source.read(index) for index in indices]
                seconds[kind].append((time.process_time() - start) / len(indices))
                if number == 0:
                    images[kind] = torch.stack(read).to(torch.int16)
        least = {kind: min(values[1:]) for kind, values in seconds.items()}
        for kind in KINDS:
            difference = (images[kind] - images["none"]).abs().flatten(1).float().mean(1).tolist()
            print(
                f"{what:<11} {kind:<8} {1e3 * least[kind]:6.3f} ms, {1 / least[kind]:6.0f} images/s, "
                f"{least['none'] / least[kind]:5.2f}x; grey levels off, mean of an image: median "
                f"{statistics.median(difference):.2f}, largest {max(difference):.2f}"
            )


def _source(data: ImageFolderDataModule) -> Any:
    data.setup("fit")
    return data._parts["train"].source


if __name__ == "__main__":
    main()
