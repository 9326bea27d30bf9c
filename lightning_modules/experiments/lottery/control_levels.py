"""`bnfree lottery controls`: trains what a ticket is compared with, as the ticket was trained."""

from __future__ import annotations

import sys
from pathlib import Path

from bnfree.errors import InputError
from bnfree.lightning_modules.command.lottery.controls import ControlArguments
from bnfree.lightning_modules.command.lottery.report import control_table
from bnfree.lightning_modules.command.lottery.report import run as report
from bnfree.lightning_modules.experiments.lottery.control_plan import plan_controls
from bnfree.lightning_modules.experiments.lottery.control_tickets import OF, compare, control_ticket
from bnfree.lightning_modules.experiments.lottery.level_results import (
    CONTROLS,
    TICKET,
    LevelResult,
    kind_title,
    level_name,
    read_level,
    seed_name,
    sentence,
)
from bnfree.lightning_modules.experiments.lottery.level_training import STEP1, Level, level_directory, train_level
from bnfree.lightning_modules.experiments.lottery.planning import LotteryRun
from bnfree.lightning_modules.experiments.lottery.pruning import carried_ticket
from bnfree.lightning_modules.training.messages import quieten, say
from bnfree.lightning_modules.training.run_directory import is_child, only_one
from bnfree.tickets import Ticket, load_ticket


def run(given: ControlArguments) -> None:
    """Trains controls of a lottery run, writes its report, and prints what they have come to.

    Args:
        given: the command line.

    Raises:
        InputError: a mistake in what the user gave; before anything is written, as far as it can be known.
    """
    quieten("fit")
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    lottery, places = plan_controls(given)
    with only_one(lottery.directory):
        train_controls(lottery, places, given.kinds)
        if not is_child():
            report(["report", str(lottery.directory)])
            print(control_table(lottery.directory))


def train_controls(lottery: LotteryRun, places: list[tuple[int, int]], kinds: tuple[str, ...]) -> None:
    """Trains, resumes or passes over controls; in all processes.

    Args:
        lottery: the run.
        places: seeds and levels that are to be checked; their tickets have been trained.
        kinds: the controls; none: nothing happens.

    Raises:
        InputError: what `bnfree fit` raises, or files of the run that are gone.
    """
    if not kinds:
        return
    say(f"{len(places) * len(kinds)} trainings: {'; '.join(kind_title(kind) for kind in kinds)}.")
    for seed, level in places:
        for kind in kinds:
            _train_control(lottery, kind, seed, level)


def control_directory(lottery: LotteryRun, kind: str, seed: int, level: int) -> Path:
    """Run directory of a control."""
    return lottery.directory / seed_name(seed) / CONTROLS / kind / level_name(level)


def _train_control(lottery: LotteryRun, kind: str, seed: int, level: int) -> LevelResult:
    folder = control_directory(lottery, kind, seed, level)
    title = f"Seed {seed}, level {level} (density {lottery.densities[level]:g}), {kind_title(kind)}"
    finished = read_level(folder)
    if finished is not None:
        say(f"{title} has finished: {sentence(finished)}.")
        return finished
    two_steps = lottery.finds_in_step1
    found = load_ticket(level_directory(lottery, seed, level, two_steps) / TICKET)
    network = lottery.network(two_steps)

    def make() -> Ticket:
        return control_ticket(lottery, kind, seed, found)

    def announce(control: Ticket | None) -> None:
        if control is None:
            return
        if control.details.get(OF) != found.checksum:
            raise InputError(
                f"{str(folder)!r} holds a control of another ticket, that of a level that has been replaced; remove it."
            )
        step = ", step 1 (real weights)" if two_steps else ""
        say(f"{title}{step}: {compare(network, control, found)}, mask {control.checksum[:12]}.")

    if not two_steps:
        result = train_level(lottery, Level(kind, level, seed, folder), make, say_start=announce)
    else:
        step1 = folder / STEP1
        train_level(lottery, Level(kind, level, seed, step1, step1=True), make, say_start=announce)
        say(f"{title}, step 2 (binary weights).")

        def carry() -> Ticket:
            return carried_ticket(lottery, load_ticket(step1 / TICKET), step1)

        result = train_level(lottery, Level(kind, level, seed, folder), carry)
    say(f"{title}: {sentence(result)}.")
    return result
