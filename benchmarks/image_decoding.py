"""JPEG file to training or evaluation image: this project's `read_image` against Pillow alone, on one thread.

Needs torchcodec (`pip install 'bnfree[fast]'`).

    python benchmarks/image_decoding.py FOLDER [--image_size 224]

FOLDER holds JPEG files, also in folders below it. All variants run in turn on the same files, several rounds; a time is
the least process CPU time of a round, which other work on the machine disturbs less than wall time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bnfree.datamodules import decoding, image_files
from bnfree.datamodules.augmentation import random_resized_crop_box
from bnfree.datamodules.image_files import read_image

Variant = Callable[[Path, int], Tensor]
BILINEAR = Image.Resampling.BILINEAR


def pillow_train(path: Path, size: int) -> Tensor:
    image = Image.open(path).convert("RGB")
    box = random_resized_crop_box(image.height, image.width, Random(path.name))
    return _tensor(image.crop(box).resize((size, size), BILINEAR))


def pillow_draft_train(path: Path, size: int) -> Tensor:
    # libjpeg decodes at 1/2, 1/4 or 1/8 where the crop is larger than needed by as much: other pixels.
    image = Image.open(path)
    width, height = image.size
    left, top, right, bottom = random_resized_crop_box(height, width, Random(path.name))
    shrink = min(right - left, bottom - top) / size
    if shrink >= 2:
        image.draft("RGB", (int(width / shrink) + 1, int(height / shrink) + 1))
    image = image.convert("RGB")
    x, y = image.width / width, image.height / height
    box = (round(left * x), round(top * y), max(round(right * x), 1), max(round(bottom * y), 1))
    return _tensor(image.crop(box).resize((size, size), BILINEAR))


def pillow_evaluate(path: Path, size: int) -> Tensor:
    image = Image.open(path).convert("RGB")
    shorter, target = min(image.size), round(size * 256 / 224)
    width, height = (max(target, int(side * target / shorter)) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return _tensor(image.resize((width, height), BILINEAR).crop((left, top, left + size, top + size)))


def train(path: Path, size: int) -> Tensor:
    return read_image(path, size, 0, Random(path.name))


def evaluate(path: Path, size: int) -> Tensor:
    return read_image(path, size, round(size * 256 / 224))


def with_pillow_decoder(variant: Variant) -> Variant:
    def run(path: Path, size: int) -> Tensor:
        image_files.decode_image = decoding._decode_with_pillow
        try:
            return variant(path, size)
        finally:
            image_files.decode_image = decoding.decode_image

    return run


VARIANTS: dict[str, dict[str, Variant]] = {
    "training": {
        "Pillow": pillow_train,
        "Pillow with draft": pillow_draft_train,
        "Pillow, resized by torch": with_pillow_decoder(train),
        "read_image (torchcodec, torch)": train,
    },
    "evaluation": {
        "Pillow": pillow_evaluate,
        "Pillow, resized by torch": with_pillow_decoder(evaluate),
        "read_image (torchcodec, torch)": evaluate,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--max_images", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = sorted(path for path in options.folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    paths = found[:: max(1, len(found) // options.max_images)][: options.max_images]
    print(f"{len(paths)} files, {options.image_size} pixels, milliseconds per image on one thread")
    for kind, variants in VARIANTS.items():
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        images: dict[str, Tensor] = {}
        for round_number in range(options.rounds + 1):
            for name, variant in variants.items():
                start = time.process_time()
                results = [variant(path, options.image_size) for path in paths]
                seconds[name].append((time.process_time() - start) / len(paths))
                if round_number == 0:
                    images[name] = torch.stack(results).to(torch.int16)
        pillow = min(seconds["Pillow"][1:])
        for name, values in seconds.items():
            difference, least = (images[name] - images["Pillow"]).abs(), min(values[1:])
            print(
                f"{kind:<11} {name:<32} {1e3 * least:6.3f} ms  {pillow / least:5.2f}x  grey levels off Pillow: "
                f"max {int(difference.max())}, in {difference.gt(0).float().mean():.2%} of values"
            )


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


if __name__ == "__main__":
    main()
