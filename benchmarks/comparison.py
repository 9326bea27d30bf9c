"""Plugins on equal terms: `bnfree fit` for each at one budget, with what it costs, as a table for each kind.

    python benchmarks/comparison.py --data_dir DIR                          # runs what is missing, then prints
    python benchmarks/comparison.py --data_dir DIR --kinds sign_estimator --seeds 0
    python benchmarks/comparison.py --data_dir DIR --costs                  # time and memory of a step
    python benchmarks/comparison.py --write docs/comparison.md              # only writes what has been run

DIR as for `configs/cifar10_small.yaml`, of which every run is a shorter one (4 epochs, 8,000 validation images, fast
modes) with one thing changed. Stop it whenever you like: a finished run is not repeated, an interrupted one goes on
from its last epoch, and several copies may run side by side. A plugin of these kinds that is added to bnfree is a row
here without more. `docs/comparison/` has the figures of what was run so far: with its files in the output folder only
what is missing is run, and the tables keep the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from budget import commit, locked
from lightning.pytorch import Callback, LightningModule, Trainer
from metrics_file import last_percent, logged

from bnfree.plugins import names

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs/cifar10_small.yaml"
EPOCHS = 4
BUDGET = (
    f"--trainer.max_epochs={EPOCHS} --data.val_split=8000 --test_after_fit=false --best_checkpoint.save_top_k=0 "
    "--model.backbone.fast=[int8_forward,bf16_backward]"
)
DEFAULT = "default"
# Plugins that stand where a name stands, and where that is.
NAMED = {
    "sign_estimator": "model.backbone.estimator",
    "weight_transform": "model.backbone.weight_transform",
    "normalizer": "model.backbone.norm",
    "head": "model.backbone.head",
    "loss": "model.loss",
}
# Overlays of other kinds.
OVERLAYS = {
    "backbone": ("group_size", "local_attention"),
    "data": (
        "reflect_padding", "alternating_flip", "cutout", "rand_augment", "mixup", "cutmix",
    ),
    "training": (
        "gradient_windows", "adamp", "sgdp", "muon", "schedule_free", "bop", "latent_sphere", "freeze_signs",
        "flip_schedule", "silent_weight_decay", "affine_only", "weight_shape",
    ),
}  # fmt: skip
# Half of the images in twice the epochs, so that all make as many steps as the default; the first is the control.
SCORES = "SCORES"
HALF = ["--trainer.max_epochs=8", "--trainer.check_val_every_n_epoch=2"]
SUBSETS = {
    "fixed_half": ["--data.limit_train=5000", *HALF],
    "random_subsets": ["--config=random_subsets", "--data.epoch_fraction=0.5", *HALF],
    "data_diet": ["--config=data_diet", f"--data.scores={SCORES}", *HALF],
}
# What needs or makes another network, needs a file or run beside it, only observes, or is asked about other images.
NOT_COMPARED = {
    "correct_teacher", "discriminator", "forgetting_scores", "periodic_regularizer", "alpha_batch_norm",
    "adversarial_style", "adversarial_training", "feature_attack", "feature_normalization", "zeroth_order",
    "ownership_triggers", "attacked_accuracy", "corrupted_accuracy",
    "channel_gating", "mask_sparsity", "layer_thresholds",
}  # fmt: skip
TITLES = {
    "sign_estimator": "Sign estimators", "weight_transform": "Transforms of weights", "normalizer": "Normalisers",
    "head": "Heads", "loss": "Losses", "backbone": "Layers of the backbone", "data": "Data",
    "subset": "Subsets of the images", "training": "Optimizers and callbacks",
}  # fmt: skip
WARM_UP, STEPS = 3, 12


def rows(kind: str) -> dict[str, list[str]]:
    """By name the words of `bnfree fit` that a row adds; an overlay, where there is one, before an option."""
    if kind == "subset":
        return SUBSETS
    overlays = {path.stem for path in [*ROOT.glob("configs/plugins/*.yaml"), *ROOT.glob("configs/*.yaml")]}
    found = names(kind) if kind in NAMED else [name for name in OVERLAYS[kind] if name in overlays]
    return {
        name: [f"--config={name}"] if name in overlays else [f"--{NAMED[kind]}={name}"]
        for name in found
        if name not in ("approx", "bn_free", "linear", "cross_entropy", "identity")
    }


def folder_of(output: Path, kind: str, name: str, seed: int) -> Path:
    """Where a run lies."""
    return output / (f"{kind}-{name}-seed{seed}" if name != DEFAULT else f"{DEFAULT}-seed{seed}")


def finished(folder: Path) -> float | None:
    """Validation accuracy (percent) after the last epoch, of a run or of `rows.csv` beside it; None before."""
    if not folder.is_dir() and (folder.parent / "rows.csv").is_file():
        lines = (line.split(",") for line in (folder.parent / "rows.csv").read_text().splitlines()[1:])
        return next((float(accuracy) for run, accuracy in lines if run == folder.name), None)
    return last_percent(folder, "val/acc") if len(logged(folder, "val/acc")) >= EPOCHS else None


def run(folder: Path, words: list[str], seed: int, data_dir: str) -> None:
    """One run, unless it has finished or another copy of this script is at it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_suffix(".lock")) as lock:
        if lock is None or finished(folder) is not None:
            return
        last = folder / "checkpoints/last.ckpt"
        scores = folder.parent / "el2n.csv"
        own = [word.replace(SCORES, str(scores)) for word in configs_first(words)]
        configs = [word for word in own if word.startswith("--config")]
        command = [sys.executable, "-m", "bnfree", "fit", f"--config={CONFIG}", *configs]
        command += [f"--data.data_dir={data_dir}", f"--run_dir={folder}", *shlex.split(BUDGET)]
        command += [f"--seed_everything={seed}", f"--data.seed={seed}", *own[len(configs) :]]
        command += [f"--ckpt_path={last}"] if last.is_file() else []
        with folder.with_suffix(".log").open("a") as log:
            environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(ROOT)}
            code = subprocess.run(command, stdout=log, stderr=log, env=environment, pass_fds=[lock], check=False)
        reached = finished(folder)
        failed = code.returncode or reached is None
        print(f"{folder.name}: {f'failed, see {log.name}' if failed else f'{reached:.2f} %'}", flush=True)


def configs_first(words: list[str]) -> list[str]:
    """Overlays before options, which the command asks for."""
    return sorted(words, key=lambda word: not word.startswith("--config"))


def score_images(output: Path, seed: int, data_dir: str) -> None:
    """Writes the scores that the data diet chooses by: EL2N of the default's network of one seed."""
    from bnfree.lightning_modules.reports.analysis import ScoreSettings, score_data

    default = folder_of(output, "", DEFAULT, seed)
    if default.is_dir() and not (output / "el2n.csv").exists() and finished(default) is not None:
        score_data(ScoreSettings([default], output / "el2n.csv", options={"data.data_dir": data_dir}))


class StepClock(Callback):
    """Only observes: the least CPU time of a training step, optimizer included, after some to warm up."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Starts the clock."""
        self._start = time.process_time()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stops it."""
        self.seconds.append(time.process_time() - self._start)


def cost(words: list[str], data_dir: str) -> tuple[float, float]:
    """CPU seconds of a step, and bytes that the network keeps of an image for its backward pass."""
    import torch

    from bnfree.lightning_modules import FitSettings, fit
    from bnfree.saved_memory import measure_saved_memory

    steps = WARM_UP + STEPS
    options = (
        f"--data.data_dir={data_dir} --data.limit_train=2000 --trainer.max_epochs=1 --trainer.max_steps={steps} "
        "--trainer.limit_val_batches=0 --trainer.callbacks+=comparison.StepClock --test_after_fit=false "
        "--best_checkpoint.save_top_k=0 --last_checkpoint.save_top_k=0 --seed_everything=0"
    )
    configs = [CONFIG, *(word.partition("=")[2] for word in words if word.startswith("--config"))]
    arguments = [*(word for word in words if not word.startswith("--config")), *shlex.split(options)]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        settings = FitSettings(configs, arguments=arguments, run_dir=Path(folder) / "run")
        module = fit(settings).model
    clock = next(c for c in module.trainer.callbacks if type(c).__name__ == "StepClock")
    backbone = module.backbone.train()
    memory = measure_saved_memory(backbone, torch.randn(64, 3, 32, 32))
    return min(clock.seconds[WARM_UP:]), memory.per_image


def measure_costs(kinds: list[str], data_dir: str, output: Path) -> None:
    """Writes `costs.csv`: time and memory of each row over those of the default, measured before and after it.

    The same step takes up to a quarter more or less time from one minute to the next; a default between any two rows
    keeps that out of what they are compared with.
    """
    lines = ["kind,name,time,memory"]
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    before = cost([], data_dir)
    # A subset's step is the default's.
    for kind in [kind for kind in kinds if kind != "subset"]:
        for name, words in rows(kind).items():
            try:
                found = cost(words, data_dir)
            except Exception as error:  # A row that cannot be built is a line of its own, not the end of the others.
                print(f"{kind} {name}: {error}", flush=True)
                continue
            after = cost([], data_dir)
            seconds, memory = found[0] / ((before[0] + after[0]) / 2), found[1] / after[1]
            lines.append(f"{kind},{name},{seconds:.2f},{memory:.2f}")
            print(f"{lines[-1]} (the default after it: {after[0] / before[0]:.2f})", flush=True)
            before = after
    output.mkdir(parents=True, exist_ok=True)
    (output / "costs.csv").write_text("\n".join(lines) + "\n")


def read_costs(output: Path) -> dict[tuple[str, str], tuple[str, str]]:
    """Time and memory by kind and name, as far as they were measured."""
    path = output / "costs.csv"
    lines = [line.split(",") for line in path.read_text().splitlines()[1:]] if path.is_file() else []
    return {(kind, name): (f"{seconds}x", f"{memory}x") for kind, name, seconds, memory in lines}


def tables(kinds: list[str], seeds: list[int], output: Path) -> str:
    """Markdown: a table for each kind of which something was run."""
    costs = read_costs(output)

    def reached(kind: str, name: str) -> dict[int, float]:
        found = {seed: finished(folder_of(output, kind, name, seed)) for seed in seeds}
        return {seed: value for seed, value in found.items() if value is not None}

    default = reached("", DEFAULT)
    text = []
    for kind in kinds:
        lines = []
        for name, words in {DEFAULT: [], **rows(kind)}.items():
            values = reached(kind, name)
            if not values:
                continue
            common = [seed for seed in values if seed in default]
            lead = statistics.mean(values[seed] - default[seed] for seed in common) if common else None
            against = f"{lead:+.1f}" if lead is not None and name != DEFAULT else ""
            each = " / ".join(f"{value:.1f}" for value in values.values())
            seconds, memory = costs.get((kind, name), ("1", "1") if name == DEFAULT else ("", ""))
            options = f"`{' '.join(words).replace('--config=', '--config ')}`" if words else ""
            mean = f"{statistics.mean(values.values()):.1f}"
            lines.append(f"| {name} | {each} | {mean} | {against} | {seconds} | {memory} | {options} |")
        if len(lines) > 1:
            seeds_named = " / ".join(map(str, seeds))
            text += [
                f"## {TITLES[kind]}\n",
                f"| name | seeds {seeds_named} | mean | against the default | step time | memory | options |",
                "| --- | --- | --- | --- | --- | --- | --- |",
                *lines,
                "",
            ]
    return "\n".join(text)


def main() -> None:
    """Runs what has not been run, then prints or writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir")
    parser.add_argument("--output", type=Path, default=Path("runs/comparison"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--kinds", nargs="+", choices=list(TITLES), default=list(TITLES))
    parser.add_argument("--costs", action="store_true", help="measure time and memory instead of training")
    parser.add_argument("--write", type=Path, metavar="MD", help="put the tables below this file's line of dashes")
    options = parser.parse_args()
    if options.data_dir and options.costs:
        measure_costs(options.kinds, options.data_dir, options.output)
    elif options.data_dir:
        print(f"commit {commit()}", flush=True)
        for seed in options.seeds:
            run(folder_of(options.output, "", DEFAULT, seed), [], seed, options.data_dir)
            for kind in options.kinds:
                if kind == "subset":
                    score_images(options.output, options.seeds[0], options.data_dir)
                for name, words in rows(kind).items():
                    run(folder_of(options.output, kind, name, seed), words, seed, options.data_dir)
    found = tables(options.kinds, options.seeds, options.output)
    if options.write:
        head, line, _ = options.write.read_text().partition("\n---\n")
        if not line:
            raise SystemExit(f"{options.write} has no line of three dashes, below which the tables go.")
        options.write.write_text(f"{head}{line}\n{found}")
    else:
        print(found)


if __name__ == "__main__":
    main()
