"""Memory and open files over hundreds of trainings in one process, hundreds of lottery levels, and a long training.

    python benchmarks/long_runs.py [--parts fits levels training] [--fits 300] [--levels 200] [--minutes 20]

Networks of width 4 on scikit-learn's digits. A line for every tenth of a part: resident memory (MiB), open file
descriptors, threads; at its end how much memory grew from the first fifth on, in percent of what was there. Memory that
only the allocator keeps is given back before each look.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from pathlib import Path

import torch
from lightning.pytorch import Callback

from bnfree.lightning_modules import FitSettings, LotterySettings, fit, run_lottery

OPTIONS = {
    "model.backbone.width": 4, "data.image_size": 8, "data.limit_train": 64, "data.batch_size": 32,
    "trainer.max_epochs": 1, "trainer.accelerator": "cpu", "trainer.enable_progress_bar": False,
}  # fmt: skip
PARTS = ["fits", "levels", "training"]


class Watch:
    """Looks at this process as a part goes on.

    Args:
        part: its name.
        total: how far it goes.
    """

    def __init__(self, part: str, total: float) -> None:
        self.part, self.total = part, total
        self.looks: list[tuple[float, float, int]] = []
        self._next = 0.0

    def look(self, at: float) -> None:
        """Prints a line if a tenth of the part has passed since the last one."""
        if at < self._next and at < self.total:
            return
        self._next = at + self.total / 10
        gc.collect()
        with suppress(AttributeError, OSError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        mib = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        files = len(list(Path("/proc/self/fd").iterdir()))
        self.looks.append((at, mib, files))
        where = f"{self.part} {at:7.1f} of {self.total:g}"
        show(f"{where}: {mib:8.1f} MiB, {files} files, {threading.active_count()} threads")

    def end(self) -> None:
        """Prints what has grown since a fifth of the part had passed."""
        later = [look for look in self.looks if look[0] >= self.total / 5]
        grown = 100 * (later[-1][1] / later[0][1] - 1)
        files = later[-1][2] - later[0][2]
        show(f"{self.part}: memory {grown:+.2f} %, files {files:+d} since the first fifth")


def show(line: str) -> None:
    """Prints a line also while a training's own output goes nowhere."""
    print(line, file=sys.__stdout__, flush=True)


class EveryEpoch(Callback):
    """Only observes: calls a function after each epoch, and ends the training when it says so."""

    def __init__(self, ask: Callable[[], bool]) -> None:
        self.ask = ask

    def on_train_epoch_end(self, trainer, pl_module) -> None:  # type: ignore[no-untyped-def]
        """Asks."""
        trainer.should_stop = self.ask()


def quietly(call: Callable[[], object]) -> None:
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        call()


def fits(folder: Path, count: int) -> None:
    """Trainings one after the other."""
    watch = Watch("fits", count)
    for number in range(1, count + 1):
        quietly(lambda number=number: fit(FitSettings("quickstart", OPTIONS, run_dir=folder / f"{number}")))  # type: ignore[misc]
        watch.look(number)
    watch.end()


def levels(folder: Path, count: int) -> None:
    """One lottery of many levels, each of which leaves out a little."""
    watch = Watch("levels", count)
    densities = [0.98**level for level in range(1, count + 1)]
    settings = LotterySettings(fit=FitSettings("quickstart", OPTIONS), run_dir=folder, densities=densities)
    done = threading.Event()

    def follow() -> None:
        while not done.wait(2):
            watch.look(len(list(folder.glob("seed_0/level_*/finished.yaml"))))

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    quietly(lambda: run_lottery(settings))
    done.set()
    follower.join()
    watch.look(count)
    watch.end()


def training(minutes: float) -> None:
    """One training, with the Trainer of Lightning and our module."""
    from lightning.pytorch import Trainer

    from bnfree.backbones import ReActNet18
    from bnfree.callbacks import AdaptiveGradientClipping, NonFiniteStop, SignalPropagation, WeightDynamics
    from bnfree.datamodules import DigitsDataModule
    from bnfree.lightning_modules import ImageClassifier

    watch, start = Watch("training", minutes), time.monotonic()

    def ask() -> bool:
        passed = (time.monotonic() - start) / 60
        watch.look(passed)
        return passed >= minutes

    with tempfile.TemporaryDirectory() as folder:
        callbacks = [AdaptiveGradientClipping(), NonFiniteStop(), SignalPropagation(), WeightDynamics()]
        trainer = Trainer(
            max_epochs=10**6, accelerator="cpu", enable_progress_bar=False, default_root_dir=folder,
            callbacks=[*callbacks, EveryEpoch(ask)],
        )  # fmt: skip
        module = ImageClassifier(ReActNet18(num_classes=10, in_channels=1, width=4))
        trainer.fit(module, datamodule=DigitsDataModule(image_size=8, batch_size=64))
    watch.end()


def main() -> None:
    """Runs the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--fits", type=int, default=300)
    parser.add_argument("--levels", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=20)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        if "fits" in chosen.parts:
            fits(Path(place) / "fits", chosen.fits)
        if "levels" in chosen.parts:
            levels(Path(place) / "levels", chosen.levels)
        if "training" in chosen.parts:
            training(chosen.minutes)


if __name__ == "__main__":
    main()
