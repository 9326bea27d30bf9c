"""Step 2 from step 1's weights, with and without calibrated gains: docs/fine_tuning.md, "From real to binary weights".

    python benchmarks/hand_over.py --data_dir DIR --seeds 0 1 2

DIR as for `configs/cifar10_small.yaml`, whose settings these are, with 3 epochs for each step, the last tested.
About 4 minutes of one core for a seed; one JSON line for each finished run.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from bnfree.backbones import ReActNet18
from bnfree.callbacks import AdaptiveGradientClipping
from bnfree.datamodules import ImageFolderDataModule
from bnfree.lightning_modules import ImageClassifier


class Watch(Callback):
    """The losses of a training, and the accuracy on 1,000 validation images before it."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.start = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Tests the weights before the first step."""
        if trainer.global_step == 0:
            with torch.no_grad():
                data: Any = trainer
                pairs = list(data.datamodule.validation_batches(1000))
                self.start = sum(int((pl_module(x).argmax(1) == y).sum()) for x, y in pairs) / 1000

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keeps a loss."""
        self.losses.append(outputs["loss"].item())


def train(data: ImageFolderDataModule, seed: int, binary: bool, **options: Any) -> tuple[Trainer, Watch, float]:
    """One step of the recipe, and its test accuracy (percent)."""
    seed_everything(seed, verbose=False)
    network = ReActNet18(10, width=16, binary_weights=binary, fast=["int8_forward", "bf16_backward"])
    module = ImageClassifier(network, lambda parameters: torch.optim.Adam(parameters, lr=5e-3), **options)
    watch = Watch()
    trainer = Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
        callbacks=[AdaptiveGradientClipping(clip_factor=0.02), watch],
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    (result,) = trainer.test(module, datamodule=data, verbose=False)
    return trainer, watch, 100 * result["test/acc"]


def main() -> None:
    """Runs both steps for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="data/cifar10")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kinds", nargs="+", default=["none", "gain"])
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    data = ImageFolderDataModule(
        options.data_dir, image_size=32, in_memory=True, normalization="cifar10", batch_size=100, val_split=4000,
        test_split=10_000, limit_train=10_000,
    )  # fmt: skip
    for seed in options.seeds:
        data.seed = seed
        with tempfile.TemporaryDirectory() as folder:
            trainer, _, step1 = train(data, seed, binary=False)
            start = Path(folder, "step1.ckpt")
            trainer.save_checkpoint(start)
            for kind in options.kinds:
                _, watch, test = train(data, seed, True, init_from=str(start), calibrate_init_from=kind)
                first = [round(statistics.mean(watch.losses[:count]), 3) for count in (10, 100)]
                row = {"seed": seed, "kind": kind, "step1": round(step1, 2), "start": round(100 * watch.start, 1)}
                print(
                    json.dumps({**row, "first_10": first[0], "first_100": first[1], "test": round(test, 2)}), flush=True
                )


if __name__ == "__main__":
    main()
