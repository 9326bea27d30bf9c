"""One factor at a time on a small CIFAR-10 budget: runs `bnfree fit` for every row and seed, and prints the table.

    python benchmarks/ablations.py --data_dir DIR

DIR as for `configs/cifar10_small.yaml`. A run that has finished is not repeated, so the script can be stopped and
started again; several copies may run side by side. `--table` only prints what has been run.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

from metrics_file import last_percent

ROOT = Path(__file__).parents[1]
BUDGET = (
    "--trainer.max_epochs=4 --trainer.check_val_every_n_epoch=4 --data.val_split=8000 --test_after_fit=false "
    "--best_checkpoint.save_top_k=0 --last_checkpoint.save_top_k=0 --trainer.enable_model_summary=false"
)
PLUGIN = "--trainer.callbacks+=ablation_plugins."
CLIP = "--trainer.callbacks=bnfree.callbacks.AdaptiveGradientClipping --trainer.callbacks.clip_factor="
NO_CALIBRATION = "--model.calibration=none "
ROWS: dict[str, dict[str, str]] = {
    "norm": {
        "bn_free (default)": "",
        "batch_norm": "--model.backbone.norm=batch_norm",
        "none": "--model.backbone.norm=none",
        "public code's rules (reference)": "--model.backbone.reference=true",
    },
    "initial latent weights": {
        "public code: uniform on [0, 1e-3)": f"{PLUGIN}LatentWeights --trainer.callbacks.public_code=true",
        "2 times the default": f"{PLUGIN}LatentWeights --trainer.callbacks.factor=2",
    },
    "calibration": {
        "none, beta analytic": "--model.calibration=none",
        "none, beta of the public code": f"{NO_CALIBRATION}{PLUGIN}Calibration --trainer.callbacks.beta=public",
        "RSign shift per channel": f"{NO_CALIBRATION}{PLUGIN}Calibration --trainer.callbacks.shift=channel",
        "beta, RSign shift per layer": f"{NO_CALIBRATION}{PLUGIN}Calibration --trainer.callbacks.beta=layer "
        "--trainer.callbacks.shift=layer",
        "beta, RSign shift per channel": "--model.calibration=beta_and_shift",
        "full, beta again each epoch": f"{PLUGIN}RepeatedCalibration",
    },
    "gain of binary convolutions": {
        "exact variance, with beta and RSign shift": f"--model.calibration=beta_and_shift {PLUGIN}ExactVarianceGain",
    },
    "alpha": {f"{alpha}": f"--model.backbone.alpha={alpha}" for alpha in (0.2, 0.25, 1.0)},
    "learning rate": {f"{lr}": f"--model.optimizer.lr={lr}" for lr in ("2e-3", "8e-3", "1.2e-2")},
    "warm-up": {"40 steps": "--model.lr_scheduler.warmup=40"},
    "gradient clipping": {
        "off": "--trainer.callbacks=[]",
        "0.001": f"{CLIP}0.001",
        "0.08": f"{CLIP}0.08",
        "0.02, convolutions only": f"{PLUGIN}ClipOnlyConvolutions",
        "0.02, classifier too": f"{CLIP}0.02 --trainer.callbacks.exclude=[]",
    },
    "weights of binary convolutions": {"plain, with a gain": f"{PLUGIN}PlainBinaryWeights"},
    "weight decay": {
        f"1e-4 on {what}": f"--model.optimizer.weight_decay=1e-4 --model.weight_decay_on={what}"
        for what in ("convolutions", "all")
    },
    "estimator": {
        "ste": "--model.backbone.estimator=ste",
        "sigmoid": "--model.backbone.estimator=sigmoid",
    },
    "1x1 shortcut": {"binary": "--model.backbone.binary_shortcut=true"},
    "augmentation": {"none": "--data.augment=false"},
    "label smoothing": {"0.1": "--model.label_smoothing=0.1"},
    "weight averaging": {
        "EMA, decay 0.98": "--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging "
        "--trainer.callbacks.decay=0.98",
    },
}


def main() -> None:
    """Runs what has not been run, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="data/cifar10")
    parser.add_argument("--output", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--factors", nargs="+", default=list(ROWS), help="which groups of rows")
    parser.add_argument("--compile", action="store_true", help="with configs/compile.yaml: the same up to rounding")
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args()
    rows = [(factor, name) for factor in options.factors for name in ROWS[factor]]
    if not options.table:
        for seed in options.seeds:
            for factor, name in rows:
                run(factor, name, seed, options)
    print(table(rows, options))


def arguments(factor: str, name: str, seed: int) -> list[str]:
    """What follows `bnfree fit --config configs/cifar10_small.yaml --data.data_dir=DIR` in a row."""
    return shlex.split(f"{BUDGET} --seed_everything={seed} --data.seed={seed} {ROWS[factor][name]}")


def directory(factor: str, name: str, seed: int, output: Path) -> Path:
    """Where a run lies."""
    words = "".join(c if c.isalnum() or c in ".-" else "_" for c in f"{factor}-{name}")
    return output / f"{words}-seed{seed}"


def accuracy(run_directory: Path) -> float | None:
    """Validation accuracy (percent) after the last epoch; None if the run has not finished."""
    return last_percent(run_directory, "val/acc")


def run(factor: str, name: str, seed: int, options: argparse.Namespace) -> None:
    """One run, unless it has finished or another copy of this script is at it."""
    folder = directory(factor, name, seed, options.output)
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    claim = folder.with_suffix(folder.suffix + ".claim")
    try:
        claim.touch(exist_ok=False)
    except FileExistsError:
        return
    command = [
        sys.executable,
        "-m",
        "bnfree",
        "fit",
        "--config",
        str(ROOT / "configs/cifar10_small.yaml"),
    ]
    command += ["--config", str(ROOT / "configs/compile.yaml")] if options.compile else []
    command += [f"--data.data_dir={options.data_dir}", f"--run_dir={folder}", *arguments(factor, name, seed)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    log = folder.with_suffix(folder.suffix + ".log")
    with log.open("w") as file:
        result = subprocess.run(command, stdout=file, stderr=file, env={**os.environ, "PYTHONPATH": path}, check=False)
    claim.unlink()
    reached = accuracy(folder)
    print(f"{factor} | {name} | seed {seed}: {'failed, see ' + str(log) if result.returncode else reached}", flush=True)


def table(rows: list[tuple[str, str]], options: argparse.Namespace) -> str:
    """The Markdown table of what has been run."""
    default = _accuracies("norm", "bn_free (default)", options)
    lines = [
        "| factor | setting | seeds | mean | against the default, same seeds | options |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for factor, name in rows:
        reached = _accuracies(factor, name, options)
        if not reached:
            continue
        common = sorted(set(reached) & set(default))
        differences = [reached[seed] - default[seed] for seed in common]
        against = f"{statistics.mean(differences):+.1f}" if differences and reached != default else ""
        each = " / ".join(f"{value:.1f}" for _, value in sorted(reached.items()))
        mean = statistics.mean(reached.values())
        command = f"`{ROWS[factor][name]}`" if ROWS[factor][name] else ""
        lines.append(f"| {factor} | {name} | {each} | {mean:.1f} | {against} | {command} |")
    return "\n".join(lines)


def _accuracies(factor: str, name: str, options: argparse.Namespace) -> dict[int, float]:
    found = {seed: accuracy(directory(factor, name, seed, options.output)) for seed in options.seeds}
    return {seed: value for seed, value in found.items() if value is not None}


if __name__ == "__main__":
    main()
