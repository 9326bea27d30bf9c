"""A small CIFAR-10 network on other data: with and without calibration, and its batch-norm twin.

    python benchmarks/fine_tuning.py --data_dir DIR --bn_free A.ckpt --batch_norm B.ckpt      # runs what is missing
    python benchmarks/fine_tuning.py --table                                                  # prints what there is

A and B are the `best.ckpt` of the rows bn_free:w16:36000x6 and batch_norm:w16:36000x6, seed 0, of
`benchmarks/budget.py`. DIR holds what is to be learned: tiny-imagenet-10/{train,val}/<class>/ and fashion-mnist/ with
its four files; what is not there is left out. Digits come with scikit-learn.

One line of the output for each finished run, at once; stop it whenever you like. All runs: Adam, 2e-3 decayed linearly
to 0, clip factor 0.02, batch 100, a new head, crops and (but for digits) flips.
"""

from __future__ import annotations

import argparse
import csv
import logging
import statistics
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from bnfree.backbones import ReActNet18
from bnfree.callbacks import AdaptiveGradientClipping
from bnfree.datamodules import DigitsDataModule, FashionMNISTDataModule, ImageFolderDataModule
from bnfree.datamodules.base import ImageDataModule
from bnfree.datamodules.sources import TensorSource
from bnfree.lightning_modules import ImageClassifier

ARMS = {
    "bn_free, as it is": ("bn_free", {"calibrate_init_from": "none"}),
    "bn_free, auto": ("bn_free", {"calibrate_init_from": "auto"}),
    "bn_free, full": ("bn_free", {"calibrate_init_from": "full"}),
    "batch_norm": ("batch_norm", {}),
}
COLUMNS = ("task", "arm", "seed", "images", "epochs", "first_loss", "test")


@dataclass(frozen=True)
class Task:
    """Images to learn, and for how long."""

    name: str
    epochs: int
    factor: float = 1.0
    """By what normalised images are multiplied."""


TASKS = [
    Task(f"{name}{words}", epochs, factor)
    for name, epochs in (("digits", 4), ("tiny-imagenet-10", 4), ("fashion-mnist", 2))
    for words, factor in (("", 1), (" x 8", 8), (" x 1/8", 1 / 8))
]


class _InColour:
    """Grey images with three equal channels."""

    def load(self, part: Any) -> Any:
        source = super().load(part)  # type: ignore[misc]
        if source is None:
            return None
        images = source.images(torch.arange(len(source.labels))).expand(-1, 3, -1, -1)
        return TensorSource(images, source.labels, source.padding, source.flip, part)


class Digits(_InColour, DigitsDataModule):
    """Digits for a network of three channels."""


class Fashion(_InColour, FashionMNISTDataModule):
    """Fashion-MNIST likewise."""


def data_of(task: Task, data_dir: Path, seed: int) -> ImageDataModule | None:
    """The data module of a task; None where its files are missing."""
    name = task.name.split()[0]
    common: dict[str, Any] = {"batch_size": 100, "seed": seed}
    if name == "digits":
        data: ImageDataModule = Digits(**common)
        data.image_shape = (3, 16, 16)
    elif not (data_dir / name).is_dir():
        return None
    elif name == "fashion-mnist":
        data = Fashion(str(data_dir / name), limit_train=10_000, **common)
        data.image_shape = (3, 28, 28)
    else:
        data = ImageFolderDataModule(
            str(data_dir / name), image_size=32, in_memory=True, normalization="cifar10", test_split=1500, **common
        )
    mean, std = (values * (3 // len(values)) for values in (data.mean, data.std))
    data.mean, data.std = mean, tuple(value / task.factor for value in std)
    return data


class FirstLosses(Callback):
    """The losses of the first ten steps."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keeps one of them."""
        if len(self.losses) < 10:
            self.losses.append(outputs["loss"].item())


def run(task: Task, arm: str, seed: int, checkpoints: dict[str, Path], data_dir: Path) -> dict[str, Any] | None:
    """One training and its test; None where the images are missing."""
    seed_everything(seed, verbose=False)
    data = data_of(task, data_dir, seed)
    if data is None:
        return None
    norm, options = ARMS[arm]
    fast = ["int8_forward", "bf16_backward"] if norm == "bn_free" else []
    network = ReActNet18(num_classes=data.num_classes, width=16, norm=norm, fast=fast)
    module = ImageClassifier(
        network, lambda parameters: torch.optim.Adam(parameters, lr=2e-3), init_from=str(checkpoints[norm]),
        replace_head=True, **options,
    )  # fmt: skip
    first = FirstLosses()
    trainer = Trainer(
        max_epochs=task.epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
        callbacks=[AdaptiveGradientClipping(clip_factor=0.02), first],
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    (result,) = trainer.test(module, datamodule=data, verbose=False)
    return {
        "task": task.name, "arm": arm, "seed": seed, "images": data.num_training_images, "epochs": task.epochs,
        "first_loss": round(statistics.mean(first.losses), 3), "test": round(100 * result["test/acc"], 2),
    }  # fmt: skip


def table(rows: list[dict[str, str]]) -> str:
    """Test accuracies by task (rows) and arm (columns): mean over seeds, and each."""
    lines = ["| images | " + " | ".join(ARMS) + " |", "| --- " * (len(ARMS) + 1) + "|"]
    for task in TASKS:
        cells = []
        for arm in ARMS:
            found = [float(row["test"]) for row in rows if row["task"] == task.name and row["arm"] == arm]
            each = " / ".join(f"{value:.1f}" for value in found)
            cells.append(f"**{statistics.mean(found):.1f}** ({each})" if found else "")
        if any(cells):
            lines.append(f"| {task.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Runs what has not been run, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=Path("data"))
    parser.add_argument("--bn_free", type=Path)
    parser.add_argument("--batch_norm", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/fine_tuning.csv"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--tasks", nargs="+", default=[task.name for task in TASKS])
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    if not options.table:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        checkpoints = {"bn_free": options.bn_free, "batch_norm": options.batch_norm}
        for seed in options.seeds:
            for task in (task for task in TASKS if task.name in options.tasks):
                for arm in options.arms:
                    _run_if_missing(task, arm, seed, checkpoints, options)
    print(table(read(options.output)))


def _run_if_missing(task: Task, arm: str, seed: int, checkpoints: dict[str, Path], options: argparse.Namespace) -> None:
    key = (task.name, arm, str(seed))
    if any((row["task"], row["arm"], row["seed"]) == key for row in read(options.output)):
        return
    row = run(task, arm, seed, checkpoints, options.data_dir)
    if row is None:
        return
    new = not options.output.exists()
    with options.output.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(row, flush=True)


def read(output: Path) -> list[dict[str, str]]:
    """The rows that there are."""
    if not output.is_file():
        return []
    with output.open(newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
