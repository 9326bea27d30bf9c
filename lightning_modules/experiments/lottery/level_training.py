"""Training one level: a fit of its own, in a run directory of its own, which ends with a mark."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnfree.errors import InputError
from bnfree.lightning_modules.experiments.lottery.checks import arguments_of
from bnfree.lightning_modules.experiments.lottery.level_results import (
    REWIND,
    TICKET,
    LevelResult,
    level_name,
    read_level,
    seed_name,
    write_level,
)
from bnfree.lightning_modules.experiments.lottery.planning import TICKET_CALLBACK, LotteryRun
from bnfree.lightning_modules.experiments.lottery.processes import wait_for
from bnfree.lightning_modules.experiments.lottery.pruning import (
    last_checkpoint,
    network_state,
    read_trained,
    write_start,
)
from bnfree.lightning_modules.training import fit as training
from bnfree.lightning_modules.training.command_line import TrainingCLI
from bnfree.lightning_modules.training.run_directory import METRICS, discard_start, is_child
from bnfree.state_dicts import read_checkpoint_file
from bnfree.tickets import Ticket, effective_density, load_ticket, save_ticket, weights_checksum

STEP1 = "step1"
START = "start.ckpt"


@dataclass(frozen=True)
class Level:
    """One level of one seed, or a control of it."""

    kind: str
    """One of `level_results.KINDS`."""
    level: int
    """0: dense."""
    seed: int
    """Seed of the run."""
    directory: Path
    """Where it goes."""
    step1: bool = False
    """Whether its weights stay real: the fit in which masks are found, with `find_in: step1`."""
    scored: bool = False
    """Whether another level is made from it, whose score may want to know more about its training."""
    rewind_file: Path | None = None
    """The rewind point that it starts from; None: that of the seed's dense level."""


def level_directory(run: LotteryRun, seed: int, level: int, step1: bool = False) -> Path:
    """Run directory of a level."""
    directory = run.directory / seed_name(seed) / level_name(level)
    return directory / STEP1 if step1 else directory


def rewind_file(run: LotteryRun, seed: int) -> Path:
    """The rewind point of a seed, which its dense fit writes: with `find_in`, that of step 1."""
    return level_directory(run, seed, 0, run.finds_in_step1) / REWIND


def read_rewind_point(run: LotteryRun, seed: int, path: Path | None = None) -> dict[str, Any]:
    """What the file of the rewind point holds, see `bnfree.callbacks.rewind_checkpoint`.

    Args:
        run: the lottery run.
        seed: its seed.
        path: the file; None: the one that the dense fit has written.

    Raises:
        InputError: it is gone or damaged.
    """
    path = path or rewind_file(run, seed)
    content: dict[str, Any] = read_checkpoint_file(path, f"the rewind point {str(path)!r}")
    return content


def train_level(
    run: LotteryRun,
    level: Level,
    make_ticket: Callable[[], Ticket] | None = None,
    init_from: Path | None = None,
    say_start: Callable[[Ticket | None], None] = lambda ticket: None,
) -> LevelResult:
    """Trains a level, goes on with it where it was stopped, or finds that it has finished; in all processes.

    Args:
        run: the lottery run.
        level: which one. Dense if there is no ticket.
        make_ticket: makes its ticket, in the first process only and unless it is there already.
        init_from: checkpoint that a dense level starts from in place of the config's.
        say_start: told the ticket before training.

    Returns:
        The result. In a fit of step 1 it is that of the real weights.

    Raises:
        InputError: what `bnfree fit` raises, or a level that did not end.
    """
    folder = level.directory
    finished = read_level(folder)
    if finished is not None:
        return finished
    path = folder / TICKET
    ticket = None
    if make_ticket is not None:
        if not is_child() and not path.is_file():
            save_ticket(make_ticket(), path)
        wait_for(path)
        ticket = load_ticket(path)
    say_start(ticket)
    options = [*run.options, *(run.step1_options if level.step1 else []), *run.seed_options(level.seed)]
    first_step, start = _start(run, level, ticket)
    options += _level_options(run, level, path if ticket is not None else None, init_from, fresh=start is None)
    if last_checkpoint(folder).is_file():
        options.append(f"--ckpt_path={last_checkpoint(folder)}")
    else:
        if not is_child():
            discard_start(folder)
        options += [f"--ckpt_path={start}"] if start is not None else []
    # The name that an earlier level's processes were told.
    os.environ.pop("BNFREE_RUN_DIR", None)
    fit = training.run(["fit", *options, f"--run_dir={folder}"])
    if fit.trainer.state.status != "finished":
        raise InputError(f"{str(folder)!r} has been interrupted; give the same command again to go on.")
    if not is_child():
        write_level(_result(run, level, fit, ticket, first_step))
        (folder / START).unlink(missing_ok=True)
    wait_for(folder / "finished.yaml")
    result = read_level(folder)
    if result is None:
        raise InputError(f"{str(folder)!r} has no result; give the same command again to go on.")
    return result


def _level_options(
    run: LotteryRun, level: Level, ticket: Path | None, init_from: Path | None, fresh: bool
) -> list[str]:
    """The options of a level's own; `fresh`: it starts from the weights of its ticket alone."""
    settings = run.settings
    arguments: dict[str, Any] = {"ticket": None if ticket is None else str(ticket)}
    if ticket is None:
        arguments |= {"include": settings.include, "exclude": settings.exclude}
        finds_masks = level.step1 or not run.finds_in_step1
        arguments["rewind_point"] = settings.rewind_point if finds_masks else None
    arguments["score"] = settings.score if level.scored else None
    callback = json.dumps({"class_path": TICKET_CALLBACK, "init_args": arguments})
    options = [f"--trainer.callbacks+={callback}"]
    if ticket is not None:
        # The same as that of the dense network.
        options.append("--trainer.enable_model_summary=false")
    if init_from is not None:
        options.append(f"--model.init_from={init_from}")
    elif ticket is not None and fresh and arguments_of(run.fit(level.step1).settings, "model").get("init_from"):
        options.append("--model.init_from=null")
    fine_tuned = settings.rewind == "none" and ticket is not None and level.step1 == run.finds_in_step1
    return options + (run.fine_tuning_options(level.step1) if fine_tuned else [])


def _start(run: LotteryRun, level: Level, ticket: Ticket | None) -> tuple[int, Path | None]:
    """The step that a level starts before, and the checkpoint that takes it there; None: a fresh start."""
    if ticket is None or run.settings.rewind == "none" or level.step1 != run.finds_in_step1:
        return 0, None
    rewind_point = read_rewind_point(run, level.seed, level.rewind_file)
    if rewind_point["checkpoint"] is None:
        return 0, None
    path = level.directory / START
    if not is_child() and not last_checkpoint(level.directory).is_file():
        write_start(rewind_point, ticket, path)
    if not last_checkpoint(level.directory).is_file():
        wait_for(path)
    return rewind_point["step"], path


def _result(run: LotteryRun, level: Level, fit: TrainingCLI, ticket: Ticket | None, first_step: int) -> LevelResult:
    """What a level's run directory, and the test after its fit, say."""
    checkpoint = read_trained(level.directory)
    network = run.network(level.step1)
    network.load_state_dict(network_state(checkpoint))
    values: list[float] = []
    metrics = level.directory / METRICS
    if metrics.is_file():
        with metrics.open() as file:
            values = [float(row["val/acc"]) for row in csv.DictReader(file) if row.get("val/acc")]
    test = {name: float(value) for name, value in fit.test_results.items()}
    states = checkpoint.get("callbacks", {}).values()
    seconds = next((state["seconds"] for state in states if isinstance(state, dict) and "seconds" in state), 0.0)
    return LevelResult(
        kind=level.kind,
        level=level.level,
        seed=level.seed,
        density=effective_density(network, run.layers(network) if ticket is None else ticket.masks),
        mask_checksum=None if ticket is None else ticket.checksum,
        epochs=checkpoint["epoch"] + 1,
        steps=checkpoint["global_step"] - first_step,
        seconds=round(seconds, 3),
        val_acc=values[-1] if values else None,
        best_val_acc=max(values, default=None),
        test_acc=test.get("test/acc"),
        test=test,
        weights_checksum=weights_checksum(network_state(checkpoint)),
        directory=level.directory,
    )
