"""Whether ideas for training have something to mend: three measurements that cost a minute, before the trainings do.

    python benchmarks/training_diagnosis.py --data_dir DIR --run RUN

DIR holds `train/<class>/*` with CIFAR-10's images. RUN is a finished run of `configs/cifar10_small.yaml` (it has
`weight_dynamics.csv`). Printed are

- for each estimator the norm of the loss's gradient at the input of every residual unit, after full calibration on 256
  images and before any training. Where it is flat, a gain of the backward pass per branch has nothing to do.
- the share of binary weights whose sign changed in each epoch of RUN, and per step in the last one. Freezing signs at
  the end, or a schedule for their changes, matters where many still change there.
- how much the latent filters of RUN have grown. A filter of twice the norm turns half as far in a step of Adam.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from bnfree.backbones import ReActNet18
from bnfree.backbones.residual import ResidualUnit
from bnfree.calibration import calibrate
from bnfree.convolution import BinaryConv2d
from bnfree.datamodules import ImageFolderDataModule

IMAGES = 256
ESTIMATORS = ("approx", "ste", "sigmoid")


def gradient_norms(estimator: str, images: Tensor, labels: Tensor) -> list[float]:
    """Of the gradient of cross-entropy at the input of every residual unit, in the order of the forward pass."""
    torch.manual_seed(0)
    network = ReActNet18(num_classes=10, width=16, stem="cifar", estimator=estimator)
    calibrate(network, images, full=True)
    inputs: list[Tensor] = []

    def keep(unit: torch.nn.Module, arguments: tuple[Tensor, ...]) -> None:
        arguments[0].retain_grad()
        inputs.append(arguments[0])

    for unit in network.modules():
        if isinstance(unit, ResidualUnit):
            unit.lean = False
            unit.register_forward_pre_hook(keep)
    F.cross_entropy(network(images), labels).backward()
    return [float(x.grad.norm()) for x in inputs if x.grad is not None]


def flipped(run: Path) -> list[float]:
    """Share of all binary weights whose sign differs from the epoch before, epoch by epoch."""
    changed: dict[int, float] = {}
    weights: dict[int, int] = {}
    with (run / "weight_dynamics.csv").open() as file:
        for line in csv.DictReader(file):
            if line["flipped"]:
                epoch, number = int(line["epoch"]), int(line["weights"])
                changed[epoch] = changed.get(epoch, 0.0) + number * float(line["flipped"])
                weights[epoch] = weights.get(epoch, 0) + number
    return [changed[epoch] / weights[epoch] for epoch in sorted(changed)]


def growth(run: Path) -> dict[str, float]:
    """Mean norm of each layer's latent 3x3 filters; at the start it is 1, for a standard deviation of n^-0.5."""
    state = torch.load(run / "checkpoints/last.ckpt", map_location="cpu", weights_only=True)["state_dict"]
    layers = [name for name, m in ReActNet18(10, width=16).named_modules() if isinstance(m, BinaryConv2d)]
    latents = {name: state[f"backbone.{name}.weight"] for name in layers if name.startswith("body")}
    return {name: float(w.flatten(1).norm(dim=1).mean()) for name, w in latents.items() if w.shape[-1] == 3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--run", type=Path, required=True)
    options = parser.parse_args()

    data = ImageFolderDataModule(
        options.data_dir, image_size=32, normalization="cifar10", batch_size=IMAGES, augment=False, val_split=4000
    )
    data.setup("fit")
    images, labels = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)[:2]
    print("Norm of the gradient at the input of each unit, over that at the last one's:")
    for estimator in ESTIMATORS:
        norms = gradient_norms(estimator, images, labels)
        print(f"{estimator:8} {' '.join(f'{norm / norms[-1]:.2f}' for norm in norms)}")
    shares = flipped(options.run)
    steps = torch.load(options.run / "checkpoints/last.ckpt", weights_only=True)["global_step"] / len(shares)
    print(f"Signs changed in each epoch (%): {' '.join(f'{100 * share:.1f}' for share in shares)}")
    print(f"In a step of the last one: {shares[-1] / steps:.1e}")
    grown = list(growth(options.run).values())
    print(f"Norm of latent filters over that at the start, layer by layer: {' '.join(f'{g:.1f}' for g in grown)}")


if __name__ == "__main__":
    main()
