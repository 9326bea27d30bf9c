"""Elastic and signed tickets on a small CIFAR-10 budget: does a stretched ticket train, and what does a mark cost?

    bnfree lottery run configs/cifar10_lottery_small.yaml --data.data_dir=DIR --seeds 0,1 --run_dir runs/target
    python benchmarks/elastic_tickets.py --data_dir DIR --target runs/target --seeds 0 1

For each seed: tickets of a ReActNet-18 with two blocks a stage are found at the target's densities; the one of
`--level` is stretched to four blocks a stage in both orders, and trained there. Beside it stand the stretched ticket
with its masks shuffled within each layer (the same weights, the same densities), and from the run on the target itself
its dense network, its ticket of that level, and that ticket with an owner's mark. Test accuracy (percent) of each best
checkpoint. What has been trained is not trained again, so the script can be stopped and started.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import yaml

from bnfree.tickets import load_ticket, random_masks, save_ticket

ROOT = Path(__file__).parents[1]
SOURCE_DEPTH = [2, 2, 2, 2]
TARGET_DEPTH = "4,4,4,4"
ORDERS = ("append", "interpolate")


def main() -> None:
    """Runs what has not been run, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="data/cifar10")
    parser.add_argument("--target", type=Path, required=True, help="directory of the lottery run on the target")
    parser.add_argument("--output", type=Path, default=Path("runs/elastic_tickets"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--level", type=int, default=2, help="of both runs")
    parser.add_argument("--compile", action="store_true", help="with configs/compile.yaml: the same up to rounding")
    options = parser.parse_args()
    for seed in options.seeds:
        find_source(seed, options)
        for name, ticket in make_tickets(seed, options).items():
            train(name, ticket, seed, options)
    print(table(options))


def bnfree(arguments: list[str], log: Path) -> None:
    """One `bnfree` command, its output in a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "bnfree", *arguments]
        subprocess.run(command, stdout=file, stderr=file, env=environment, check=True)


def fit_options(options: argparse.Namespace) -> list[str]:
    """Common to all trainings."""
    overlay = [f"--config={ROOT / 'configs/compile.yaml'}"] if options.compile else []
    return [*overlay, f"--data.data_dir={options.data_dir}"]


def source_run(seed: int, options: argparse.Namespace) -> Path:
    """Directory of the lottery run on the shallow network."""
    return options.output / f"source_{seed}"


def find_source(seed: int, options: argparse.Namespace) -> None:
    """Finds tickets of the shallow network; a finished run is passed over by the command itself."""
    folder = source_run(seed, options)
    settings = yaml.safe_load((ROOT / "configs/cifar10_lottery_small.yaml").read_text())["lottery"]
    arguments = ["lottery", "run", str(ROOT / "configs/cifar10_lottery_small.yaml"), f"--run_dir={folder}"]
    arguments += [f"--seeds={seed}", f"--lottery.densities={settings['densities'][: options.level]}"]
    arguments += [f"--model.backbone.blocks_per_stage={SOURCE_DEPTH}", *fit_options(options)]
    bnfree(arguments, options.output / f"source_{seed}.log")


def make_tickets(seed: int, options: argparse.Namespace) -> dict[str, Path]:
    """The tickets to train on the target, by name of the row."""
    level = f"seed_{seed}/level_{options.level:02}/ticket.pt"
    tickets = {}
    log = options.output / f"tickets_{seed}.log"
    for order in ORDERS:
        stretched = options.output / f"stretched_{order}_{seed}.pt"
        if not stretched.exists():
            arguments = ["ticket", "stretch", str(source_run(seed, options) / level)]
            arguments += ["--blocks_per_stage", TARGET_DEPTH, "--order", order, "--calibrate"]
            bnfree([*arguments, "--output", str(stretched)], log)
        tickets[f"stretched, {order}"] = stretched
    shuffled = options.output / f"shuffled_{seed}.pt"
    ticket = load_ticket(tickets[f"stretched, {ORDERS[0]}"])
    masks = random_masks(ticket.masks, seed)
    state = {**ticket.state_dict, **{f"{layer}.mask": mask for layer, mask in masks.items()}}
    save_ticket(replace(ticket, state_dict=state, score="random", scope="layer"), shuffled)
    tickets["stretched, masks shuffled in each layer"] = shuffled
    key, signed = options.output / f"owner_{seed}.key", options.output / f"signed_{seed}.pt"
    if not signed.exists():
        if not key.exists():
            bnfree(["ticket", "key", "new", "--output", str(key)], log)
        arguments = ["ticket", "sign", str(options.target / level), "--key", str(key), "--message", "benchmark"]
        bnfree([*arguments, "--output", str(signed)], log)
    tickets["ticket of the target, signed"] = signed
    return tickets


def run_directory(name: str, seed: int, options: argparse.Namespace) -> Path:
    """Where a training lies."""
    words = "".join(c if c.isalnum() else "_" for c in name)
    return options.output / f"{words}_seed{seed}"


def train(name: str, ticket: Path, seed: int, options: argparse.Namespace) -> None:
    """Trains a ticket, unless it has been trained."""
    folder = run_directory(name, seed, options)
    if accuracy(folder) is not None:
        return
    arguments = ["fit", "--config", str(ROOT / "configs/cifar10_small.yaml"), *fit_options(options)]
    arguments += [f"--model.init_from={ticket}", f"--seed_everything={seed}", f"--data.seed={seed}"]
    bnfree([*arguments, f"--run_dir={folder}"], folder.with_suffix(".log"))
    print(f"{name}, seed {seed}: {accuracy(folder)}", flush=True)


def accuracy(folder: Path) -> float | None:
    """Test accuracy (percent) of a training; None if it has not finished."""
    path = folder / "metrics.csv"
    if not path.is_file():
        return None
    with path.open() as file:
        values = [row["test/acc"] for row in csv.DictReader(file) if row.get("test/acc")]
    return 100 * float(values[-1]) if values else None


def level_accuracy(run: Path, seed: int, level: int) -> float | None:
    """Test accuracy (percent) of a level of a lottery run; None if it has not finished."""
    mark = run / f"seed_{seed}" / f"level_{level:02}" / "finished.yaml"
    return 100 * yaml.safe_load(mark.read_text())["test_acc"] if mark.is_file() else None


def table(options: argparse.Namespace) -> str:
    """The Markdown table of what has been run."""
    rows: dict[str, list[float | None]] = {
        "dense target": [level_accuracy(options.target, seed, 0) for seed in options.seeds],
        "ticket of the target": [level_accuracy(options.target, seed, options.level) for seed in options.seeds],
        "dense source": [level_accuracy(source_run(seed, options), seed, 0) for seed in options.seeds],
        "ticket of the source": [
            level_accuracy(source_run(seed, options), seed, options.level) for seed in options.seeds
        ],
    }
    names = list(make_tickets(options.seeds[0], options))
    rows |= {name: [accuracy(run_directory(name, seed, options)) for seed in options.seeds] for name in names}
    lines = [f"| network | {' | '.join(f'seed {seed}' for seed in options.seeds)} | mean |"]
    lines.append("| --- |" + " --- |" * (len(options.seeds) + 1))
    for name, values in rows.items():
        found = [value for value in values if value is not None]
        cells = ["-" if value is None else f"{value:.2f}" for value in values]
        mean = f"{statistics.mean(found):.2f}" if found else "-"
        lines.append(f"| {name} | {' | '.join(cells)} | {mean} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
