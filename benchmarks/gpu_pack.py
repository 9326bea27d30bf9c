"""Everything that a GPU must prove, in one command, without a network: exactness, speed, screens, the CIFAR-10 recipe.

    python benchmarks/gpu_pack.py --output DIR --archive cifar10-jpeg-train.tar.xz [--minutes 12] [--parts PART ...]

Parts, in this order: `correctness` (gradients, clipping, optimizers, resume, graphs against float64 on the CPU),
`speed` (time, memory and launches of a training step against a composition of the papers' formulas), `recipe`
(teacher, both steps, packed network), `screens`, `controls`. Each has its share of the minutes. What has been found is
a JSON line at once, on the terminal and in DIR/gpu_pack.jsonl, so that it can be stopped at any moment.

The archive holds `train/<class>/<number>.jpg`; of its images the last `--held_out` (by number, equally many of every
class) are tested on, after the last epoch, and nothing is chosen on them. `--toy` tells on a CPU that all of it runs.
"""

from __future__ import annotations

import argparse
import os
from functools import cached_property
from pathlib import Path

# For matrix products under deterministic algorithms; read when CUDA starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import gpu_correctness
import gpu_speed
import gpu_training
import torch
from gpu_data import Images, read_archive, toy_images
from gpu_report import Report
from gpu_step import VARIANTS, variant

# Of the minutes. What a part leaves goes to the next.
SHARES = {"correctness": 0.12, "speed": 0.28, "recipe": 0.45, "screens": 0.07, "controls": 0.08}
# Where nothing has been timed.
USUAL = "lean, half_forward + bf16_backward"
AUTOCAST_MUST_GAIN = 1.5


class Runs:
    """The parts, and what one hands to the next."""

    def __init__(self, report: Report, device: torch.device, chosen: argparse.Namespace) -> None:
        self.report, self.device, self.chosen, self.toy = report, device, chosen, chosen.toy
        self.times: dict[str, float] = {}

    def correctness(self) -> None:
        """See `gpu_correctness`."""
        gpu_correctness.run(self.report, self.device, self.toy)

    def speed(self) -> None:
        """See `gpu_speed`."""
        self.times = gpu_speed.run(self.report, self.device, self.toy)

    def recipe(self) -> None:
        """See `gpu_training`."""
        train, test, names = self._data
        gpu_training.run_recipe(self.report, train, test, names, self._settings, self.report.left, self.toy)

    def screens(self) -> None:
        """See `gpu_training`."""
        gpu_training.run_screens(self.report, self._data[0], self._settings, self.report.left, self.toy)

    def controls(self) -> None:
        """See `gpu_training`."""
        train, test, _ = self._data
        gpu_training.run_controls(self.report, train, test, self._settings, self.report.left, self.toy)

    @cached_property
    def _data(self) -> tuple[Images, Images, list[str]]:
        if self.toy:
            train, test, names = toy_images(80), toy_images(40), [str(label) for label in range(10)]
        else:
            train, test, names = read_archive(self.chosen.archive, self.chosen.held_out)
        self.report.line("run", "images", training=len(train), held_out=len(test))
        return train.to(self.device), test.to(self.device), names

    @cached_property
    def _settings(self) -> gpu_training.Settings:
        how = variant(self.chosen.variant or self._fastest())
        return gpu_training.Settings(how, width=4, batch=20) if self.toy else gpu_training.Settings(how)

    def _fastest(self) -> str:
        # Under autocast the trunk has 8 bits, and another network is trained than is tested: only where it pays.
        weighted = {name: ms * (AUTOCAST_MUST_GAIN if variant(name).bf16 else 1) for name, ms in self.times.items()}
        return min(weighted, key=weighted.__getitem__, default=USUAL)


def main() -> None:
    """Runs the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the lines and of the packed network")
    parser.add_argument("--archive", type=Path, help="tar file of the images; without it nothing is trained")
    parser.add_argument("--held_out", type=int, default=5000, help="images to test on")
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--parts", nargs="+", choices=list(SHARES), default=list(SHARES))
    parser.add_argument(
        "--variant", choices=[v.name for v in VARIANTS], help="of the training step; default: the fastest measured"
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--toy", action="store_true", help="small networks and made-up images")
    chosen = parser.parse_args()
    chosen.parts = [part for part in SHARES if part in chosen.parts]
    trained = [part for part in chosen.parts if part in ("recipe", "screens", "controls")]
    if trained and not chosen.toy and (chosen.archive is None or not chosen.archive.is_file()):
        parser.error(f"--archive={chosen.archive} is no file; {trained[0]} trains on its images.")
    device = torch.device(chosen.device)
    report = Report(chosen.output, chosen.minutes)
    about = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    report.line("run", about, torch=torch.__version__, minutes=chosen.minutes, parts=chosen.parts, toy=chosen.toy)
    torch.backends.cudnn.benchmark = True
    runs = Runs(report, device, chosen)
    for place, part in enumerate(chosen.parts):
        share = SHARES[part] / sum(SHARES[later] for later in chosen.parts[place:])
        with report.within(share * report.left), report.item(part, "whole"):
            getattr(runs, part)()
    report.line("run", "done")


if __name__ == "__main__":
    main()
