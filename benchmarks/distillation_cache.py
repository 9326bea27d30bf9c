"""Distillation from stored logits: what it saves, and what augmentation that comes again does to accuracy.

    python benchmarks/distillation_cache.py [--part speed|accuracy]

Speed: a training step of ReActNet18 (batch 64, 32x32, one thread) that asks a ResNet-34, and one that reads its logits
from a mapped file; they take turns, and a time is the least process CPU time. Accuracy: students of a real-valued
teacher on scikit-learn's digits, with new augmentation in every epoch (a live teacher) and with 8, 2 and 1 variants of
each image and without augmentation (stored logits); the mean over seeds of the test accuracy after the last epoch.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Adam

from bnfree.backbones import ReActNet18
from bnfree.callbacks import AdaptiveGradientClipping
from bnfree.clipping import adaptive_clip_grad_
from bnfree.datamodules import DigitsDataModule
from bnfree.distillation import distillation_loss, mean_probabilities
from bnfree.lightning_modules import DistilledClassifier, ImageClassifier, Teacher, TorchvisionNetwork

BATCH, ROUNDS = 64, 5
# Settings of the data module, and whether logits are stored.
VARIANTS: dict[str, tuple[dict[str, Any], bool]] = {
    "new augmentation, live teacher": ({}, False),
    "8 variants, stored": ({"augmentation_cycle": 8}, True),
    "2 variants, stored": ({"augmentation_cycle": 2}, True),
    "1 variant, stored": ({"augmentation_cycle": 1}, True),
    "no augmentation, stored": ({"augment": False}, True),
}


def speed(folder: Path) -> None:
    torch.manual_seed(0)
    student, teacher = ReActNet18(), TorchvisionNetwork("resnet34", 10, stem="cifar").eval().requires_grad_(False)
    optimizer = Adam(student.parameters(), fused=True)
    images = torch.randn(BATCH, 3, 32, 32)
    save_file({"logits": torch.randn(50_000, 1, 10)}, folder / "logits.safetensors")
    stored = load_file(folder / "logits.safetensors")["logits"]

    def live() -> Tensor:
        with torch.no_grad():
            return teacher(images)

    def from_file() -> Tensor:
        return stored.index_select(0, torch.randint(0, len(stored), (BATCH,)))[:, 0]

    answers = {"live teacher": live, "stored logits": from_file}
    seconds: dict[str, list[float]] = {name: [] for name in answers}
    for _ in range(ROUNDS + 1):
        for name, answer in answers.items():
            start = time.process_time()
            distillation_loss(student(images), mean_probabilities([answer()])).backward()
            adaptive_clip_grad_(student.body.parameters())
            optimizer.step()
            optimizer.zero_grad()
            seconds[name].append(time.process_time() - start)
    live_step, stored_step = (min(values[1:]) for values in seconds.values())
    print(f"step with a live ResNet-34 {live_step:.2f} s, with its logits from a file {stored_step:.2f} s: ", end="")
    print(f"{live_step / stored_step:.2f}x", flush=True)


def accuracy(folder: Path, seeds: int, epochs: int) -> None:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}

    def fit(module: ImageClassifier, data: DigitsDataModule) -> tuple[float, float]:
        trainer = Trainer(
            accelerator="cpu", max_epochs=epochs, enable_model_summary=False, limit_val_batches=0,
            callbacks=[AdaptiveGradientClipping(0.02)], **quiet,
        )  # fmt: skip
        start = time.process_time()
        trainer.fit(module, datamodule=data)
        seconds = time.process_time() - start
        (results,) = trainer.test(module, datamodule=data, verbose=False)
        return 100 * results["test/acc"], seconds

    def network(**options: Any) -> nn.Module:
        return ReActNet18(10, in_channels=1, width=16, **options)

    reached: dict[str, list[tuple[float, float]]] = {name: [] for name in ("teacher", *VARIANTS)}
    for seed in range(seeds):
        seed_everything(seed, verbose=False)
        teacher = ImageClassifier(network(binary_weights=False), lambda p: Adam(p, lr=5e-3))
        reached["teacher"].append(fit(teacher, DigitsDataModule(seed=seed)))
        for name, (options, is_stored) in VARIANTS.items():
            seed_everything(seed, verbose=False)
            cache = str(folder / f"{name}-{seed}") if is_stored else None
            student = DistilledClassifier(
                network(), Teacher(lambda teacher=teacher: teacher.backbone), logits_cache=cache,
                optimizer=lambda p: Adam(p, lr=5e-3),
            )  # fmt: skip
            reached[name].append(fit(student, DigitsDataModule(seed=seed, **options)))
            print(f"seed {seed}, {name}: {reached[name][-1][0]:.2f} %, {reached[name][-1][1]:.1f} s", flush=True)
    for name, results in reached.items():
        accuracies, seconds = zip(*results, strict=True)
        each = " / ".join(f"{value:.2f}" for value in accuracies)
        print(f"{name:<31} {statistics.mean(accuracies):6.2f} %  ({each})  {statistics.mean(seconds):6.1f} s CPU time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("speed", "accuracy"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        if options.part != "accuracy":
            speed(Path(folder))
        if options.part != "speed":
            accuracy(Path(folder), options.seeds, options.epochs)


if __name__ == "__main__":
    main()
