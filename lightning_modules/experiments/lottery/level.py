"""Training one level: a fit of its own, in a run directory of its own, which ends with a mark."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnfree.errors import InputError
from bnfree.lightning_modules.experiments.files import validation_accuracies
from bnfree.lightning_modules.experiments.lottery.level_results import (
    FINISHED,
    TICKET,
    LevelResult,
    read_level,
    write_level,
)
from bnfree.lightning_modules.experiments.lottery.level_tickets import (
    last_checkpoint,
    network_state,
    read_rewind_point,
    read_trained,
    write_start,
)
from bnfree.lightning_modules.experiments.lottery.plan import LotteryPlan, arguments_of
from bnfree.lightning_modules.experiments.processes import barrier
from bnfree.lightning_modules.training.fit import FitResult, fit
from bnfree.lightning_modules.training.run_directory import discard_start, is_child
from bnfree.lightning_modules.training.settings import FitSettings
from bnfree.tickets import Ticket, effective_density, load_ticket, save_ticket, weights_checksum

TICKET_CALLBACK = "bnfree.callbacks.LotteryTicket"
START = "start.ckpt"
PATIENCE = 1800.0


@dataclass(frozen=True)
class Level:
    """One level of one seed, or a control of it."""

    kind: str
    """See `level_results.kind_title`."""
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
    init_from: Path | None = None
    """Checkpoint that a dense level starts from in place of the config's."""
    rewind_file: Path | None = None
    """The rewind point that it starts from; None: that of the seed's dense level."""
    callbacks: tuple[dict[str, Any], ...] = ()
    """Callbacks in addition to those of the config."""


def train_level(
    plan: LotteryPlan,
    level: Level,
    make_ticket: Callable[[], Ticket] | None = None,
    announce: Callable[[Ticket | None], None] = lambda ticket: None,
) -> LevelResult:
    """Trains a level, goes on with it where it was stopped, or finds that it has finished; in all processes.

    Args:
        plan: of the lottery.
        level: which one. Dense if there is no ticket.
        make_ticket: makes its ticket, in the first process only and unless it is there already.
        announce: told the ticket before training.

    Returns:
        The result. In a fit of step 1 it is that of the real weights.

    Raises:
        InputError: what `fit` raises, or a level that did not end.
    """
    folder = level.directory
    finished = read_level(folder)
    if finished is not None:
        return finished
    ticket = None
    if make_ticket is not None:
        if not is_child() and not (folder / TICKET).is_file():
            save_ticket(make_ticket(), folder / TICKET)
        wait_for(folder / TICKET)
        ticket = load_ticket(folder / TICKET)
    announce(ticket)
    first_step, start = _start(plan, level, ticket)
    if last_checkpoint(folder).is_file():
        checkpoint: Path | None = last_checkpoint(folder)
    else:
        checkpoint = start
        if not is_child():
            discard_start(folder)
    options = _options(plan, level, ticket, fresh=start is None)
    config = plan.config(level.seed, level.step1)
    trained = fit(FitSettings([config], options, run_dir=folder, ckpt_path=checkpoint))
    if not trained.finished:
        raise InputError(f"{str(folder)!r} has been interrupted; give the same command again to go on.")
    if not is_child():
        write_level(_result(plan, level, trained, ticket, first_step))
        (folder / START).unlink(missing_ok=True)
    wait_for(folder / FINISHED)
    result = read_level(folder)
    if result is None:
        raise InputError(f"{str(folder)!r} has no result; give the same command again to go on.")
    return result


def _options(plan: LotteryPlan, level: Level, ticket: Ticket | None, fresh: bool) -> dict[str, Any]:
    """The options of a level's own; `fresh`: it starts from the weights of its ticket alone."""
    settings = plan.settings
    arguments: dict[str, Any] = {"ticket": None if ticket is None else str(level.directory / TICKET)}
    if ticket is None:
        arguments |= {"include": settings.include, "exclude": settings.exclude}
        finds_masks = level.step1 or not plan.finds_in_step1
        arguments["rewind_point"] = settings.rewind_point if finds_masks else None
    arguments["score"] = settings.score if level.scored else None
    callback = {"class_path": TICKET_CALLBACK, "init_args": arguments}
    options: dict[str, Any] = {"trainer.callbacks+": [*level.callbacks, callback]}
    if ticket is not None:
        # The same as that of the dense network.
        options["trainer.enable_model_summary"] = False
    if level.init_from is not None:
        options["model.init_from"] = str(level.init_from)
    elif ticket is not None and fresh and arguments_of(plan.fit(level.step1).settings, "model").get("init_from"):
        options["model.init_from"] = None
    if settings.rewind == "none" and ticket is not None and level.step1 == plan.finds_in_step1:
        options["model.optimizer.lr"] = plan.fine_tuning_rate(level.step1)
    return options


def _start(plan: LotteryPlan, level: Level, ticket: Ticket | None) -> tuple[int, Path | None]:
    """The step that a level starts before, and the checkpoint that takes it there; None: a fresh start."""
    if ticket is None or plan.settings.rewind == "none" or level.step1 != plan.finds_in_step1:
        return 0, None
    rewind_point = read_rewind_point(level.rewind_file or plan.rewind_file(level.seed))
    if rewind_point["checkpoint"] is None:
        return 0, None
    path = level.directory / START
    if not last_checkpoint(level.directory).is_file():
        if not is_child():
            write_start(rewind_point, ticket, path)
        wait_for(path)
    return rewind_point["step"], path


def _result(plan: LotteryPlan, level: Level, trained: FitResult, ticket: Ticket | None, first_step: int) -> LevelResult:
    """What a level's run directory, and the test after its fit, say."""
    checkpoint = read_trained(level.directory)
    network = plan.network(level.step1)
    network.load_state_dict(network_state(checkpoint, network))
    values = validation_accuracies(level.directory)
    states = checkpoint.get("callbacks", {}).values()
    seconds = next((state["seconds"] for state in states if isinstance(state, dict) and "seconds" in state), 0.0)
    return LevelResult(
        kind=level.kind,
        level=level.level,
        seed=level.seed,
        density=effective_density(network, plan.layers(network) if ticket is None else ticket.masks),
        mask_checksum=None if ticket is None else ticket.checksum,
        epochs=checkpoint["epoch"] + 1,
        steps=checkpoint["global_step"] - first_step,
        seconds=round(seconds, 3),
        val_acc=values[-1] if values else None,
        best_val_acc=max(values, default=None),
        test_acc=trained.test_metrics.get("test/acc"),
        test=trained.test_metrics,
        weights_checksum=weights_checksum(network_state(checkpoint, network)),
        directory=level.directory,
    )


def wait_for(path: Path) -> None:
    """Waits until the first process has written a file, or all processes are here.

    Processes that a cluster starts at the same time meet each other in their first fit only, which may be later.

    Args:
        path: the file.

    Raises:
        InputError: nothing for half an hour.
    """
    barrier()
    start = time.monotonic()
    while is_child() and not path.is_file():
        if time.monotonic() - start > PATIENCE:
            raise InputError(f"{str(path)!r} has not been written by the first process; is its directory shared?")
        time.sleep(0.1)
