"""Where the lead goes as training grows: `bnfree fit` for every norm, budget and seed, one line in a file for each.

    python benchmarks/budget.py --data_dir DIR                                        # all rows, cheapest first
    python benchmarks/budget.py --data_dir DIR --rows bn_free:w16:36000x6:sigmoid --seeds 0
    python benchmarks/budget.py --rows_file docs/budget.csv --table --figure budget.png

DIR as for `configs/cifar10_small.yaml`, which every run follows: 4,000 of the 50,000 images validate and 10,000 others
test, so 36,000 are left to train on. A row is NORM:wWIDTH:IMAGESxEPOCHS, followed by :ESTIMATOR and :lr=RATE where they
are not the norm's own. Its test accuracy is that of the checkpoint with the best validation accuracy.

Stop it whenever you like: a finished run is not repeated, an interrupted one goes on from its last epoch. Several
copies may run side by side. Options of `bnfree fit` after `--` go to every run and into its line.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import os
import shlex
import signal
import statistics
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from metrics_file import last_percent, logged

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs/cifar10_small.yaml"
# The best of a short list at 60,000 images shown (README, docs/ablations.md); not searched for the public code's rules.
LEARNING_RATES = {"bn_free": "5e-3", "batch_norm": "5e-3", "none": "2e-3", "reference": "5e-3"}
DEFAULT_ESTIMATOR = "approx"
BUDGETS = ("w16:10000x6", "w16:36000x6", "w16:36000x14", "w16:36000x24", "w32:36000x30")
ROWS = [f"{norm}:{budget}" for budget in BUDGETS for norm in LEARNING_RATES]
ROWS += [f"bn_free:{budget}:{estimator}" for budget in BUDGETS[:3] for estimator in ("sigmoid", "ste")]
# The two for speed; without those that do not work on the machine.
SPEED_MODES = ("int8_forward", "bf16_backward")
COLUMNS = (
    "row", "norm", "estimator", "width", "train_images", "epochs", "presentations", "seed", "lr", "fast",
    "best_val", "test", "images_per_second", "commit", "options",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One setting, without its seed."""

    norm: str
    width: int
    images: int
    epochs: int
    estimator: str
    lr: str

    @classmethod
    def parse(cls, text: str) -> Row:
        """Reads NORM:wWIDTH:IMAGESxEPOCHS[:ESTIMATOR][:lr=RATE]."""
        try:
            norm, width, length, *more = text.split(":")
            rates = [word.removeprefix("lr=") for word in more if word.startswith("lr=")]
            estimators = [word for word in more if not word.startswith("lr=")]
            images, epochs = map(int, length.split("x"))
            estimator, lr = (*estimators, DEFAULT_ESTIMATOR)[0], (*rates, LEARNING_RATES[norm])[0]
            return cls(norm, int(width.removeprefix("w")), images, epochs, estimator, lr)
        except (KeyError, ValueError):
            norms = ", ".join(LEARNING_RATES)
            form = "NORM:wWIDTH:IMAGESxEPOCHS[:ESTIMATOR][:lr=RATE]"
            raise SystemExit(f"{text!r} is not {form} with NORM of {norms}.") from None

    def __str__(self) -> str:
        words = [self.norm, f"w{self.width}", f"{self.images}x{self.epochs}"]
        words += [self.estimator] if self.estimator != DEFAULT_ESTIMATOR else []
        words += [f"lr={self.lr}"] if self.lr != LEARNING_RATES[self.norm] else []
        return ":".join(words)

    @property
    def presentations(self) -> int:
        """Images shown in the whole training, each as often as it is shown."""
        return self.images * self.epochs

    @property
    def cost(self) -> int:
        """Orders the rows; the products of a convolution grow with the square of the width."""
        return self.width**2 * self.presentations

    def arguments(self) -> list[str]:
        """Options of `bnfree fit`."""
        norm = "reference=true" if self.norm == "reference" else f"norm={self.norm}"
        return [
            f"--model.backbone.{norm}",
            f"--model.backbone.width={self.width}",
            f"--model.backbone.estimator={self.estimator}",
            f"--model.optimizer.lr={self.lr}",
            f"--data.limit_train={self.images}",
            f"--trainer.max_epochs={self.epochs}",
        ]


class Runner:
    """Runs rows, some at a time, and appends the line of each that has finished."""

    def __init__(
        self, data_dir: str, output: Path, rows_file: Path, fast: Sequence[str], options: Sequence[str], nice: int
    ):
        self.data_dir = data_dir
        self.output = output
        self.rows_file = rows_file
        self.fast = tuple(fast)
        self.options, self.nice = list(options), nice
        self.stopping = False
        self.failed: list[str] = []
        self._children: set[subprocess.Popen[bytes]] = set()

    def run_all(self, runs: Sequence[tuple[Row, int]], jobs: int) -> None:
        """Starts them in order, `jobs` at a time; an interrupt stops those that run."""
        self.output.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(jobs) as executor:
            futures = [executor.submit(self.run, row, seed) for row, seed in runs]
            try:
                for future in futures:
                    future.result()
            finally:
                self.stopping = True
                executor.shutdown(wait=False, cancel_futures=True)
                for child in list(self._children):
                    child.terminate()

    def run(self, row: Row, seed: int) -> None:
        """One run, unless it is in the file or another copy of this script is at it."""
        wanted = {"row": str(row), "seed": str(seed), "options": shlex.join(self.options)}
        if self.stopping or any(wanted.items() <= line.items() for line in read(self.rows_file)):
            return
        folder = self.output / self._folder_name(row, seed)
        with locked(folder.with_suffix(".lock")) as lock:
            if lock is None:
                print(f"{row} | seed {seed}: another copy is at it", flush=True)
                return
            if not _finished(folder, row.epochs):
                code = self._fit(row, seed, folder, lock)
                if self.stopping:
                    return
                if code or not _finished(folder, row.epochs):
                    self.failed.append(str(row))
                    print(f"{row} | seed {seed}: failed, see {folder.with_suffix('.log')}", flush=True)
                    return
            line = self._line(row, seed, folder)
            append(self.rows_file, line)
            print(f"{row} | seed {seed}: test {line['test']} %, best validation {line['best_val']} %", flush=True)

    def _folder_name(self, row: Row, seed: int) -> str:
        # Other options are another run.
        options = f"-{zlib.crc32(shlex.join(self.options).encode()):08x}" if self.options else ""
        return f"{str(row).replace(':', '-').replace('=', '')}{options}-seed{seed}"

    def _modes(self, row: Row) -> tuple[str, ...]:
        # Batch norm and the public code's rules are computed the plain way, where fast modes change nothing.
        return self.fast if row.norm in ("bn_free", "none") else ()

    def _fit(self, row: Row, seed: int, folder: Path, lock: int) -> int:
        command = ["nice", "-n", str(self.nice), sys.executable, "-m", "bnfree", "fit", "--config", str(CONFIG)]
        command += [f"--data.data_dir={self.data_dir}", f"--run_dir={folder}", *row.arguments()]
        command += [f"--seed_everything={seed}", f"--data.seed={seed}"]
        command += [f"--model.backbone.fast=[{','.join(self._modes(row))}]", *self.options]
        last = folder / "checkpoints/last.ckpt"
        command += [f"--ckpt_path={last}"] if last.is_file() else []
        environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(ROOT)}
        with folder.with_suffix(".log").open("a") as log:
            # The child has the lock too: should this script be killed alone, no other copy starts the run beside it.
            child = subprocess.Popen(command, stdout=log, stderr=log, env=environment, pass_fds=[lock])
        self._children.add(child)
        try:
            return child.wait()
        finally:
            self._children.discard(child)

    def _line(self, row: Row, seed: int, folder: Path) -> dict[str, str]:
        test = last_percent(folder, "test/acc")
        speed = logged(folder, "throughput/images_per_second")
        values = {
            "row": row, "norm": row.norm, "estimator": row.estimator, "width": row.width,
            "train_images": row.images, "epochs": row.epochs, "presentations": row.presentations, "seed": seed,
            "lr": row.lr, "fast": "+".join(self._modes(row)) or "none",
            "best_val": f"{100 * max(logged(folder, 'val/acc')):.2f}", "test": f"{test:.2f}",
            "images_per_second": f"{statistics.median(speed):.0f}" if speed else "",
            "commit": commit(), "options": shlex.join(self.options),
        }  # fmt: skip
        return {name: str(value) for name, value in values.items()}


def _finished(folder: Path, epochs: int) -> bool:
    # An interrupted run may have been tested as well; it lacks epochs.
    return len(logged(folder, "val/acc")) >= epochs and bool(logged(folder, "test/acc"))


def _speed_modes() -> list[str]:
    # Imported where needed: it takes seconds, and a table needs none of it.
    from fast_modes import offered

    return offered(SPEED_MODES)


@contextmanager
def locked(path: Path) -> Iterator[int | None]:
    """Descriptor of the locked file; None if somebody else has it."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield file.fileno()


def append(rows_file: Path, line: dict[str, str]) -> None:
    """Appends a line, whoever else does so at the same time."""
    rows_file.parent.mkdir(parents=True, exist_ok=True)
    with rows_file.open("a", newline="") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if not rows_file.stat().st_size:
            writer.writeheader()
        writer.writerow(line)
        file.flush()


def read(rows_file: Path) -> list[dict[str, str]]:
    """The lines of finished runs."""
    if not rows_file.is_file():
        return []
    with rows_file.open(newline="") as file:
        return list(csv.DictReader(file))


def commit() -> str:
    """The commit that is checked out, with a + if files differ from it; empty outside a repository."""
    git = ["git", "-C", str(ROOT)]
    found = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)
    return found.stdout.strip() + ("+" if changed.stdout.strip() else "")


def table(lines: Sequence[dict[str, str]]) -> str:
    """The Markdown table, cheapest rows first, with the lead over batch norm at equal budget and seeds."""
    reached: dict[tuple[Row, str], dict[int, float]] = {}
    for line in lines:
        reached.setdefault((Row.parse(line["row"]), line["options"]), {})[int(line["seed"])] = float(line["test"])
    twins = {
        (row.width, row.images, row.epochs): seeds
        for (row, options), seeds in reached.items()
        if row.norm == "batch_norm" and not options
    }
    rows = [
        "| width | training images x epochs | images shown | norm | seeds: test accuracy | mean | against batch norm |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (row, options), seeds in sorted(
        reached.items(), key=lambda found: (found[0][0].cost, str(found[0][0]).replace("bn_free", ""), found[0][1])
    ):
        twin = twins.get((row.width, row.images, row.epochs), {})
        leads = [seeds[seed] - twin[seed] for seed in sorted(seeds) if seed in twin]
        is_twin = row.norm == "batch_norm" and not options
        lead = f"{statistics.mean(leads):+.2f}" if leads and not is_twin else ""
        lead += f" ({len(leads)} of {len(seeds)} seeds)" if lead and len(leads) < len(seeds) else ""
        name = " ".join([f"`{row.norm}`", *str(row).split(":")[3:], *([f"`{options}`"] if options else [])])
        each = ", ".join(f"{seed}: {accuracy:.2f}" for seed, accuracy in sorted(seeds.items()))
        mean = f"{statistics.mean(seeds.values()):.2f}"
        cells = [f"{row.width}", f"{row.images:,} x {row.epochs}", f"{row.presentations:,}", name, each, mean, lead]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    """Runs what has not been run, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="data/cifar10")
    parser.add_argument("--output", type=Path, default=Path("runs/budget"), help="folder of the runs")
    parser.add_argument("--rows_file", type=Path, help="CSV of the finished runs; default: rows.csv in the output")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", default=ROWS, metavar="ROW", help="default: " + " ".join(ROWS))
    parser.add_argument("--nice", type=int, default=19, help="niceness of the trainings")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, of one thread and priority 19 each")
    parser.add_argument("--exact", action="store_true", help="without fast modes")
    parser.add_argument("--table", action="store_true", help="only print the table")
    parser.add_argument("--figure", type=Path, metavar="PNG", help="also draw accuracy over images shown")
    parser.add_argument("options", nargs="*", help="after --: options of bnfree fit for every run")
    chosen = parser.parse_args()
    rows_file = chosen.rows_file or chosen.output / "rows.csv"
    failed: list[str] = []
    if not chosen.table:
        # Pairs of one seed come one after the other, so that what has been run so far can be compared.
        runs = [(Row.parse(name), seed) for seed in chosen.seeds for name in chosen.rows]
        runs.sort(key=lambda run: run[0].cost)
        fast = [] if chosen.exact else _speed_modes()
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        runner = Runner(chosen.data_dir, chosen.output, rows_file, fast, chosen.options, chosen.nice)
        runner.run_all(runs, chosen.jobs)
        failed = runner.failed
    lines = read(rows_file)
    print(table(lines))
    if chosen.figure:
        from budget_figure import draw

        draw(lines).savefig(chosen.figure)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
