"""Kills trainings at random moments with SIGKILL, resumes them, and compares all that they leave with a whole run.

    python benchmarks/kill_and_resume.py --kills 200

Each case runs once undisturbed. Then the same command is started again and again in another directory, and killed: at
any call of a hook, in the midst of writing a checkpoint or metrics, before and after a file takes its name. When it has
come to its end, everything is compared bit for bit: weights, optimizer, learning rates, metrics, best score, counters
and random numbers of all checkpoints, tickets and tables. Left out is what a clock says.

One process imports everything and forks the others, which costs milliseconds where a start costs seconds.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch.trainer.call as hooks
import numpy as np
import sklearn.datasets  # noqa: F401 - the data module would import it in each process anew
import torch
import yaml

from bnfree.lightning_modules import cli, compat
from bnfree.lightning_modules.training import command_line  # noqa: F401 - likewise

# What a clock says, and a checksum of a text that names the directory.
LEFT_OUT = ("throughput/", "img/s", "wait", "seconds", "mean_seconds", "checksums")
NETWORK: dict[str, Any] = {
    "model": {
        "class_path": "bnfree.lightning_modules.ImageClassifier",
        "init_args": {
            "backbone": {
                "class_path": "bnfree.backbones.ReActNet18",
                "init_args": {"num_classes": 10, "in_channels": 1, "width": 2, "blocks_per_stage": [1, 1, 1, 1]},
            },
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}},
            "calibration_images": 16,
        },
    },
    "data": {
        "class_path": "bnfree.datamodules.DigitsDataModule",
        "init_args": {"batch_size": 16, "limit_train": 96, "val_split": 48},
    },
    "trainer": {
        "max_epochs": 3, "accelerator": "cpu", "log_every_n_steps": 2, "enable_model_summary": False,
        "callbacks": [{"class_path": "bnfree.callbacks.AdaptiveGradientClipping", "init_args": {"clip_factor": 0.02}}],
    },
}  # fmt: skip
PLUGINS = """
import torch
from bnfree.backbones import ReActNet18


class Dropout(ReActNet18):
    def forward(self, images):
        return super().forward(torch.nn.functional.dropout(images, 0.2, self.training))
"""
EVERY_STEP = ("--last_checkpoint.every_n_epochs=null", "--last_checkpoint.every_n_train_steps=1")
EVERY_TWO = ("--last_checkpoint.every_n_epochs=null", "--last_checkpoint.every_n_train_steps=2")


def callback(name: str, **arguments: Any) -> str:
    """The option that adds a callback."""
    path = name if "." in name else f"bnfree.callbacks.{name}"
    return f"--trainer.callbacks+={yaml.safe_dump({'class_path': path, 'init_args': arguments}, default_flow_style=True, width=9999).strip()}"  # noqa: E501


@dataclass(frozen=True)
class Case:
    """One command."""

    words: tuple[str, ...] = ()
    """Options, or the command after `bnfree` if it is no fit."""
    processes: int = 1
    prepare: Callable[[Path], None] | None = None
    """Writes more files into the directory that it runs in."""
    before: tuple[tuple[str, ...], ...] = ()
    """Commands that run before it, undisturbed."""
    files: dict[str, Any] = field(default_factory=dict)
    """YAML files by name."""

    @property
    def is_fit(self) -> bool:
        """Whether it is a single training."""
        return not self.words or self.words[0].startswith("-")


def write_images(directory: Path) -> None:
    """Eight small photographs of each of three classes, of noise."""
    from PIL import Image

    noise = np.random.default_rng(0)
    for split, images in (("train", 24), ("val", 6), ("test", 3)):
        for name in "abc":
            folder = directory / "images" / split / name
            folder.mkdir(parents=True)
            for index in range(images):
                Image.fromarray(noise.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(folder / f"{index}.png")


FOLDER = (
    "--data=bnfree.datamodules.ImageFolderDataModule", "--data.data_dir=images", "--data.batch_size=12",
    "--data.image_size=8", "--data.limit_train=60", "--model.backbone.in_channels=3",
    "--model.backbone.num_classes=3",
)  # fmt: skip
RECIPE = {"stages": {"step1": {"config": "network.yaml", "options": {"model.backbone.binary_weights": False}},
                     "step2": {"config": "network.yaml"}}}  # fmt: skip
LOTTERY = {"config": "network.yaml", "lottery": {"densities": [0.5, 0.2], "rewind_point": "4it"}}
EPOCHS = ("--trainer.max_epochs=2",)
CASES = {
    "epoch ends": Case(),
    "every second step": Case(EVERY_TWO),
    "every step, validation twice an epoch": Case((*EVERY_STEP, "--trainer.val_check_interval=0.5")),
    "accumulation": Case((*EVERY_STEP, "--trainer.accumulate_grad_batches=4")),
    "accumulation at epoch ends": Case(("--trainer.accumulate_grad_batches=4",)),
    "steps limit the run": Case((*EVERY_STEP, "--trainer.max_epochs=-1", "--trainer.max_steps=15")),
    "callbacks": Case(
        (*EVERY_TWO, callback("WeightDynamics"), callback("SignalPropagation"),
         callback("EarlyBird", density=0.3, window=2, tolerance=0.001), callback("Throughput"))
    ),
    "callbacks at epoch ends": Case((callback("WeightDynamics"), callback("SignalPropagation"))),
    "gradient windows": Case((*EVERY_STEP, callback("GradientWindows"))),
    "multi-prize ticket": Case((*EVERY_TWO, callback("MultiPrizeTicket", density=0.3))),
    "moving average of weights": Case(
        (*EVERY_STEP, callback("lightning.pytorch.callbacks.EMAWeightAveraging", decay=0.8))
    ),
    "moving average at epoch ends": Case((callback("lightning.pytorch.callbacks.EMAWeightAveraging", decay=0.8),)),
    "bf16-mixed": Case((*EVERY_TWO, "--trainer.precision=bf16-mixed")),
    "momentum, rates by epoch": Case(
        (*EVERY_TWO, "--model.optimizer=SGD", "--model.optimizer.lr=0.05", "--model.optimizer.momentum=0.9",
         "--model.interval=epoch")
    ),
    "dropout": Case((*EVERY_TWO, "--model.backbone=kill_plugins.Dropout")),
    "best three and every second epoch": Case(
        (*EVERY_TWO, "--trainer.check_val_every_n_epoch=2", "--trainer.max_epochs=4",
         callback("lightning.pytorch.callbacks.ModelCheckpoint", filename="top-{step}", monitor="train/loss",
                  save_top_k=3, every_n_epochs=1, save_on_train_epoch_end=True))
    ),
    "photographs, read by workers": Case((*FOLDER, *EVERY_TWO, "--data.num_workers=2"), prepare=write_images),
    "photographs in memory": Case((*FOLDER, *EVERY_TWO, "--data.num_workers=0"), prepare=write_images),
    "two processes": Case((*EVERY_TWO, "--data.batch_size=8"), processes=2),
    "two processes, accumulation": Case(
        (*EVERY_STEP, "--data.batch_size=8", "--trainer.accumulate_grad_batches=4"), processes=2
    ),
    "recipe": Case(("recipe", "recipe.yaml", "--run_dir=run", *EPOCHS), files={"recipe.yaml": RECIPE}),
    "recipe, every second step": Case(
        ("recipe", "recipe.yaml", "--run_dir=run", *EPOCHS, *EVERY_TWO), files={"recipe.yaml": RECIPE}
    ),
    "lottery": Case(("lottery", "run", "lottery.yaml", "--run_dir=run", *EPOCHS), files={"lottery.yaml": LOTTERY}),
    "lottery, every second step": Case(
        ("lottery", "run", "lottery.yaml", "--run_dir=run", *EPOCHS, *EVERY_TWO), files={"lottery.yaml": LOTTERY}
    ),
    "controls": Case(
        ("lottery", "controls", "run", "--levels=1", "--controls=random_layerwise,shuffle_signs"),
        before=(("lottery", "run", "lottery.yaml", "--run_dir=run", *EPOCHS),), files={"lottery.yaml": LOTTERY},
    ),
}  # fmt: skip


class Moments:
    """Counts the moments at which a process may be killed, and kills it at one of them.

    Args:
        last: the number of that one; None: it lives.
    """

    def __init__(self, last: int | None) -> None:
        self.passed, self.last = 0, last

    def comes(self) -> bool:
        """Whether the moment that comes now is the last one."""
        self.passed += 1
        return self.passed == self.last

    def pass_by(self) -> None:
        """Lives through a moment, or does not."""
        if self.comes():
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        """Puts the moments into this process."""
        call, save, replace, rows = hooks._call_callback_hooks, torch.save, Path.replace, compat.KeepingWriter.save

        def call_hooks(*arguments: Any, **options: Any) -> None:
            self.pass_by()
            call(*arguments, **options)
            self.pass_by()

        def save_half(content: Any, file: Any, *arguments: Any, **options: Any) -> None:
            if self.comes():
                whole = io.BytesIO()
                save(content, whole)
                half = whole.getvalue()[: len(whole.getvalue()) // 2]
                if hasattr(file, "write"):
                    file.write(half)
                    file.flush()
                else:
                    Path(file).write_bytes(half)
                os.kill(os.getpid(), signal.SIGKILL)
            save(content, file, *arguments, **options)

        def rename(path: Path, target: Any) -> Path:
            self.pass_by()
            result = replace(path, target)
            self.pass_by()
            return result

        def save_rows(writer: Any) -> None:
            waiting, last = bool(writer.metrics), self.comes()
            rows(writer)
            if last:
                if waiting:
                    os.truncate(writer.metrics_file_path, Path(writer.metrics_file_path).stat().st_size - 5)
                os.kill(os.getpid(), signal.SIGKILL)

        hooks._call_callback_hooks = call_hooks
        torch.save = save_half
        Path.replace = rename  # type: ignore[method-assign, assignment]
        compat.KeepingWriter.save = save_rows  # type: ignore[method-assign]


def run(case: Case, words: tuple[str, ...], directory: Path, last: int | None = None, victim: int = 0) -> int | None:
    """Runs a command in processes of its own.

    Args:
        case: how many of them.
        words: the command.
        directory: where it runs.
        last: the moment at which it is killed; None: it is not.
        victim: which of the processes.

    Returns:
        How many moments the first process has passed; None: it was killed.
    """
    port = _free_port()
    children = [_start(case, words, directory, rank, port, last if rank == victim else None)
                for rank in range(case.processes)]  # fmt: skip
    # The first one to end decides: the others of a killed one would wait for it.
    codes = {}
    while len(codes) < len(children):
        child, status = os.wait()
        codes[child] = os.waitstatus_to_exitcode(status)
        if codes[child]:
            for other in children:
                if other not in codes:
                    os.kill(other, signal.SIGKILL)
    failed = [code for code in codes.values() if code]
    # The other process of a killed one may find its connection closed before it is killed itself.
    if failed and -signal.SIGKILL not in failed:
        raise RuntimeError(f"{' '.join(words)} ended with {failed}:\n{(directory / 'log-0').read_text()[-3000:]}")
    return None if any(codes.values()) else int((directory / "moments").read_text())


def _start(case: Case, words: tuple[str, ...], directory: Path, rank: int, port: int, last: int | None) -> int:
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.chdir(directory)
        log = os.open(f"log-{rank}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if case.processes > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(case.processes),
                           "LOCAL_WORLD_SIZE": str(case.processes), "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1",
                           "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "1"}  # fmt: skip
            words = (*words, "--trainer.strategy=ddp", f"--trainer.devices={case.processes}")
        torch.set_num_threads(1)
        moments = Moments(last)
        moments.install()
        sys.argv = ["bnfree", *words]
        code = cli.main(list(words))
        if rank == 0:
            Path("moments").write_text(str(moments.passed))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def prepared(case: Case, directory: Path) -> Path:
    """A directory with the case's files, in which what comes before it has run."""
    directory.mkdir(parents=True)
    (directory / "network.yaml").write_text(yaml.safe_dump(NETWORK))
    (directory / "kill_plugins.py").write_text(PLUGINS)
    for name, content in case.files.items():
        (directory / name).write_text(yaml.safe_dump(content, sort_keys=False))
    if case.prepare is not None:
        case.prepare(directory)
    for words in case.before:
        run(case, words, directory)
    return directory


def command(case: Case, directory: Path) -> tuple[str, ...]:
    """What a user types to start, or to go on after a kill."""
    if not case.is_fit:
        return case.words
    run_directory = directory / "run"
    words = ("fit", "--config=network.yaml", "--run_dir=run", *case.words)
    if (run_directory / "checkpoints" / "last.ckpt").is_file():
        return (*words, "--ckpt_path=last")
    # Nothing is there to go on from.
    shutil.rmtree(run_directory, ignore_errors=True)
    return words


def differences(whole: Path, other: Path) -> list[str]:
    """What differs between two directories, a line for each."""
    found = []
    names = [{str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and _matters(path)}
             for root in (whole, other)]  # fmt: skip
    found += [f"{name}: only in one" for name in sorted(names[0] ^ names[1])]
    for name in sorted(names[0] & names[1]):
        one, two = _content(whole / name, whole), _content(other / name, other)
        found += [f"{name}: {line}" for line in _differing(one, two, "")]
    return found


def _matters(path: Path) -> bool:
    names = ("log-", "moments", "config", "events.out.tfevents", ".lock", "hparams.yaml", "command")
    folders = {"__pycache__", "images"} & set(path.parts)
    return path.suffix != ".png" and not folders and not path.name.startswith(names)


def _content(path: Path, root: Path) -> Any:
    if path.suffix in (".ckpt", ".pt"):
        return _relative(torch.load(path, map_location="cpu", weights_only=True), str(root))
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return [{name: value for name, value in row.items() if not name.startswith(LEFT_OUT)} for row in rows]
    if path.suffix == ".yaml":
        return _relative(yaml.safe_load(path.read_text()), str(root))
    # A report says how long trainings took.
    return re.sub(r"[\d.]+ s\b", "", path.read_text()) if path.suffix == ".md" else path.read_bytes()


def _relative(value: Any, root: str) -> Any:
    if isinstance(value, dict):
        return {_relative(key, root): _relative(inner, root) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_relative(inner, root) for inner in value]
    if not isinstance(value, str):
        return value
    # What has run before has done so in a directory that has been copied.
    prepared = str(Path(root).parent.with_name("prepared") / Path(root).name)
    return value.replace(root, "ROOT").replace(prepared, "ROOT")


def _differing(one: Any, two: Any, name: str) -> Iterator[str]:
    if isinstance(one, dict) and isinstance(two, dict):
        for key in [*one, *(key for key in two if key not in one)]:
            if str(key).startswith(LEFT_OUT) or ".throughput/" in str(key) or str(key).endswith((".img/s", ".wait")):
                continue
            if key not in one or key not in two:
                yield f"{name}.{key}: only in one"
            else:
                yield from _differing(one[key], two[key], f"{name}.{key}")
    elif isinstance(one, list) and isinstance(two, list):
        if len(one) != len(two):
            yield f"{name}: {len(one)} and {len(two)} entries"
        for index, pair in enumerate(zip(one, two, strict=False)):
            yield from _differing(*pair, f"{name}[{index}]")
    elif isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        if one.dtype != two.dtype or one.shape != two.shape or not torch.equal(one, two):
            yield f"{name}: another tensor"
    elif one != two and not (one != one and two != two):
        yield f"{name}: {str(one)[:60]} and {str(two)[:60]}"


@dataclass
class Count:
    """What one case has shown."""

    kills: int = 0
    runs: int = 0
    differences: list[str] = field(default_factory=list)


def try_case(name: str, kills: int, moments: random.Random, directory: Path) -> Count:
    """Kills a case's command so many times, and counts the differences.

    Args:
        name: of the case.
        kills: at least so many; a run is killed up to three times before it may end.
        moments: draws the moments.
        directory: where it runs.
    """
    case, count = CASES[name], Count()
    whole = prepared(case, directory / "whole")
    there = int(run(case, command(case, whole), whole) or 0)
    first = prepared(case, directory / "prepared") if case.before else None
    while count.kills < kills:
        place = directory / f"killed-{count.runs}"
        if first is not None:
            shutil.copytree(first, place)
            # Files name the place of others.
            shutil.rmtree(first)
            first = None if count.kills + 3 >= kills else prepared(case, directory / "prepared")
        else:
            prepared(case, place)
        for _ in range(3):
            if run(case, command(case, place), place, moments.randint(1, there), moments.randrange(case.processes)):
                break
            count.kills += 1
        run(case, command(case, place), place)
        count.runs += 1
        found = differences(whole / "run", place / "run")
        count.differences += found
        if found:
            (place / "differences").write_text("\n".join(found))
        else:
            shutil.rmtree(place)
    return count


def main() -> int:
    """Runs all cases, or those of the given names; the exit code says whether there was a difference."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="In all.")
    parser.add_argument("--seed", type=int, default=0, help="Of the moments.")
    parser.add_argument("--cases", nargs="*", default=list(CASES), metavar="NAME", help=f"Of {', '.join(CASES)}.")
    parser.add_argument("--directory", type=Path, default=None, help="Where to run; what differs stays there.")
    options = parser.parse_args()
    directory = options.directory or Path(tempfile.mkdtemp())
    counts = {}
    for index, name in enumerate(options.cases):
        moments = random.Random(options.seed * 1000 + index)
        try:
            counts[name] = try_case(name, -(-options.kills // len(options.cases)), moments, directory / name)
        except RuntimeError as error:
            counts[name] = Count(differences=str(error).splitlines())
        count = counts[name]
        print(f"| {name} | {count.kills} | {count.runs} | {len(count.differences)} |", flush=True)
        for line in count.differences[:8]:
            print(f"    {line}", flush=True)
    kills, found = (sum(c.kills for c in counts.values()), sum(len(c.differences) for c in counts.values()))
    print(f"{kills} kills in {sum(c.runs for c in counts.values())} runs, {found} differences ({directory})")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
