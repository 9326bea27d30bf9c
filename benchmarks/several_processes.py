"""Two processes with half the batch each against one process: weights, metrics, and each image tested once.

    python benchmarks/several_processes.py                      # two processes on the CPU (gloo)
    python benchmarks/several_processes.py --accelerator gpu    # where two GPUs are (NCCL)

In double precision on the CPU, in float32 on a GPU. Batch norm is expected to differ: each process has the statistics
of its own half.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.callbacks import AdaptiveGradientClipping, LotteryTicket, MultiPrizeTicket
from bnfree.datamodules import DigitsDataModule
from bnfree.lightning_modules import ImageClassifier
from bnfree.tickets import Ticket, apply, prune, save_ticket

SMALL: dict[str, Any] = {"num_classes": 10, "in_channels": 1, "width": 4}
TOLERANCE = {"cpu": 1e-9, "gpu": 1e-3}
TEST_SIZES = (2, 3, 15, 17, 33)


def _net(kind: Callable[..., nn.Module] = ReActNet18, **options: Any) -> Callable[[], nn.Module]:
    return lambda: kind(**{**SMALL, **options})


def _clipped(directory: Path) -> list[Callback]:
    return [AdaptiveGradientClipping(clip_factor=0.02)]


def _pruned(directory: Path) -> list[Callback]:
    path = directory / f"ticket-{os.environ.get('RANK', '0')}.pt"
    torch.manual_seed(5)
    network = ReActNet18(**SMALL)
    apply(network, prune(network, density=0.3))
    save_ticket(Ticket.of(network, score="standardized", scope="global", density=0.3), path)
    return [LotteryTicket(str(path)), AdaptiveGradientClipping(clip_factor=0.02)]


def _learned_masks(directory: Path) -> list[Callback]:
    return [MultiPrizeTicket(density=0.3, seed=3)]


@dataclass(frozen=True)
class Case:
    """One training."""

    network: Callable[[], nn.Module] = field(default_factory=_net)
    callbacks: Callable[[Path], list[Callback]] = lambda directory: []
    differs: bool = False
    """Whether it cannot be the same."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the Trainer."""


CASES = {
    "ReActNet18": Case(),
    "ReActNet18, clipped": Case(callbacks=_clipped),
    "ReActNetA, clipped": Case(_net(ReActNetA, width=8), callbacks=_clipped),
    "group norm": Case(_net(norm="group_norm")),
    "layer norm": Case(_net(norm="layer_norm")),
    "no normalisation": Case(_net(norm="none")),
    "real weights": Case(_net(binary_weights=False)),
    "batch norm": Case(_net(norm="batch_norm"), differs=True),
    "accumulation, 3 + 2 batches": Case(callbacks=_clipped, options={"accumulate_grad_batches": 3}),
    "ticket, clipped": Case(callbacks=_pruned),
    "ticket, accumulation": Case(callbacks=_pruned, options={"accumulate_grad_batches": 2}),
    "learned masks": Case(callbacks=_learned_masks),
}


def train(processes: int, accelerator: str, directory: Path) -> None:
    """Trains all cases in one of the processes, and writes what has come out."""
    rank = int(os.environ.get("RANK", "0"))
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    options: dict[str, Any] = {
        "accelerator": accelerator, "devices": processes, "strategy": "ddp" if processes > 1 else "auto",
        "precision": "64-true" if accelerator == "cpu" else "32-true", "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 2, "limit_train_batches": 5,
    }  # fmt: skip
    results: dict[str, Any] = {}
    for name, case in CASES.items():
        torch.manual_seed(0)
        # What follows must not depend on the process: a second one draws something else on purpose.
        callbacks = case.callbacks(directory)
        torch.manual_seed(0)
        network = case.network()
        torch.manual_seed(100 + rank)
        module = ImageClassifier(
            network, optimizer=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3)
        )
        trainer = Trainer(**options, **case.options, callbacks=callbacks)
        trainer.fit(module, datamodule=DigitsDataModule(batch_size=16 // processes, limit_train=96, val_split=33))
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith(("tr", "v"))}
        weights = {key: value.cpu() for key, value in network.state_dict().items()}
        results[name] = {"weights": weights, "metrics": metrics}
    for size in TEST_SIZES:
        torch.manual_seed(0)
        module = ImageClassifier(ReActNet18(**SMALL))
        trainer = Trainer(**options)
        data = DigitsDataModule(batch_size=16 // processes)
        data.test_split = size
        metrics = trainer.test(module, datamodule=data, verbose=False)[0]
        results[f"test on {size} images"] = {"weights": {}, "metrics": metrics}
    torch.save(results, directory / f"{processes}-{rank}.pt")


def _launch(processes: int, accelerator: str, directory: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        # As torchrun starts them.
        several = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        several |= {"GROUP_RANK": 0, "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": 1}
        environment = dict(os.environ)
        if processes > 1:
            environment |= {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in several.items()}}
        words = ["--part", str(processes), "--accelerator", accelerator, "--directory", str(directory)]
        started.append(subprocess.Popen([sys.executable, __file__, *words], env=environment))
    codes = [process.wait() for process in started]
    if any(codes):
        raise SystemExit(f"{processes} process(es) failed.")


def _distance(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    return max(((one[k].double() - two[k].double()).abs().max().item() for k in one if one[k].numel()), default=0.0)


def main() -> int:
    """Prints a line for each case; the exit code says whether one is not as expected."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--directory", type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--part", type=int, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part is not None:
        torch.set_num_threads(1)
        train(options.part, options.accelerator, options.directory)
        return 0
    directory = Path(tempfile.mkdtemp())
    for processes in (1, 2):
        _launch(processes, options.accelerator, directory)
    one, two, other = (torch.load(directory / name, weights_only=True) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    wrong = 0
    print("| case | weights | metrics | between the processes |\n| --- | --- | --- | --- |")
    for name in one:
        case = CASES.get(name, Case())
        weights = _distance(one[name]["weights"], two[name]["weights"])
        between = _distance(two[name]["weights"], other[name]["weights"])
        pairs = [(value, two[name]["metrics"][key]) for key, value in one[name]["metrics"].items()]
        metrics = max(abs(a - b) / max(abs(a), 1) for a, b in pairs)
        # Running statistics of batch norm are each process's own.
        tolerance = TOLERANCE[options.accelerator]
        # Metrics are sums in float32.
        same = weights <= tolerance and metrics <= max(tolerance, 1e-6) and between == 0
        good = weights > 1e-4 if case.differs else same
        wrong += not good
        print(f"| {name} | {weights:.1e} | {metrics:.1e} | {between:.1e} | {'' if good else 'NOT AS EXPECTED'}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
