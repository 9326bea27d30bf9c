"""`bnfree lottery run`: train dense, then prune, rewind and train again, level by level, for each seed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from bnfree.lightning_modules.command.lottery.arguments import parse
from bnfree.lightning_modules.command.lottery.controls import take_kinds
from bnfree.lightning_modules.command.lottery.report import control_table
from bnfree.lightning_modules.command.lottery.report import run as report
from bnfree.lightning_modules.experiments.lottery.control_levels import train_controls
from bnfree.lightning_modules.experiments.lottery.level_results import TICKET, LevelResult, read_level, sentence
from bnfree.lightning_modules.experiments.lottery.level_training import (
    Level,
    level_directory,
    read_rewind_point,
    train_level,
)
from bnfree.lightning_modules.experiments.lottery.planning import LotteryRun, plan
from bnfree.lightning_modules.experiments.lottery.pruning import carried_ticket, last_checkpoint, next_ticket
from bnfree.lightning_modules.experiments.lottery.unchanged import check_unchanged, write_settings
from bnfree.lightning_modules.training.messages import quieten, say
from bnfree.lightning_modules.training.run_directory import is_child, only_one
from bnfree.tickets import Ticket, load_ticket, mask_statistics


def run(arguments: Sequence[str]) -> None:
    """Runs a lottery.

    Args:
        arguments: `run` and its options.

    Raises:
        InputError: a mistake in what the user gave; before anything is written, as far as it can be known.
    """
    kinds, arguments = take_kinds(arguments)
    lottery = prepare(arguments)
    with only_one(lottery.directory):
        if not is_child():
            write_settings(lottery)
        describe(lottery)
        for seed in lottery.settings.seeds:
            run_seed(lottery, seed)
        levels = range(1, len(lottery.densities))
        train_controls(lottery, [(seed, level) for seed in lottery.settings.seeds for level in levels], kinds)
        if not is_child():
            report(["report", str(lottery.directory)])
            if kinds:
                print(control_table(lottery.directory))


def prepare(arguments: Sequence[str]) -> LotteryRun:
    """Reads the command line of an action that trains levels, and plans; writes nothing.

    Args:
        arguments: name of the action and its options.

    Raises:
        InputError: a mistake in what the user gave, or a directory with a run of other settings.
    """
    quieten("fit")
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    lottery = plan(parse(arguments[1:], arguments[0]))
    check_unchanged(lottery)
    return lottery


def describe(lottery: LotteryRun) -> None:
    """Says which layers are pruned, and how dense the levels are."""
    choices = lottery.choices(lottery.network())
    widths = [
        max(len(text) for text in texts) for texts in zip(*((c.name, str(c.shape)) for c in choices), strict=True)
    ]
    weights = sum(choice.weights for choice in choices if choice.pruned)
    say(f"{sum(c.pruned for c in choices)} of {len(choices)} layers are pruned, {weights:,} weights:")
    for choice in choices:
        row = (choice.name.ljust(widths[0]), str(choice.shape).ljust(widths[1]), f"{choice.weights:>10,}")
        say("  " + "  ".join((*row, f"{'pruned' if choice.pruned else 'dense'} ({choice.reason})")))
    say(f"Levels: {', '.join(f'{density:g}' for density in lottery.densities)} of them kept.")


def run_seed(lottery: LotteryRun, seed: int) -> list[LevelResult]:
    """Trains, resumes or passes over all levels of a seed; in all processes.

    Returns:
        The results, the dense level's first.

    Raises:
        InputError: what `bnfree fit` raises, or files of an earlier level that are gone.
    """
    results = []
    for level in range(len(lottery.densities)):
        finished = read_level(level_directory(lottery, seed, level))
        if finished is not None:
            say(f"{_title(lottery, seed, level)} has finished: {sentence(finished)}.")
        elif lottery.finds_in_step1:
            finished = _two_steps(lottery, seed, level)
        else:
            finished = _one_level(lottery, seed, level, step1=False)
        results.append(finished)
    return results


def _one_level(lottery: LotteryRun, seed: int, level: int, step1: bool) -> LevelResult:
    """A level whose masks come from the level before, and whose weights from the rewind point."""
    folder = partial(level_directory, lottery, seed, step1=step1)

    def prune() -> Ticket:
        start = read_rewind_point(lottery, seed)["state_dict"]
        return next_ticket(lottery, seed, level, folder(level - 1), start, step1)

    place = Level("ticket" if level else "dense", level, seed, folder(level), step1, scored=True)
    title = _title(lottery, seed, level) + (", step 1 (real weights)" if step1 else "")
    result = train_level(lottery, place, prune if level else None, say_start=_announce(title, lottery))
    say(f"{title}: {sentence(result)}.")
    return result


def _two_steps(lottery: LotteryRun, seed: int, level: int) -> LevelResult:
    """A level that is found on real weights and carried to binary ones."""
    step1 = level_directory(lottery, seed, level, step1=True)
    _one_level(lottery, seed, level, step1=True)
    place = Level("ticket" if level else "dense", level, seed, level_directory(lottery, seed, level))
    title = f"{_title(lottery, seed, level)}, step 2 (binary weights)"

    def carry() -> Ticket:
        return carried_ticket(lottery, load_ticket(step1 / TICKET), step1)

    result = train_level(
        lottery, place, carry if level else None, None if level else last_checkpoint(step1),
        say_start=_announce(title, lottery),
    )  # fmt: skip
    say(f"{title}: {sentence(result)}.")
    return result


def _title(lottery: LotteryRun, seed: int, level: int) -> str:
    return f"Seed {seed}, level {level} of {len(lottery.densities) - 1} (density {lottery.densities[level]:g})"


def _announce(title: str, lottery: LotteryRun) -> Callable[[Ticket | None], None]:
    def announce(ticket: Ticket | None) -> None:
        if ticket is None:
            say(f"{title}: dense.")
            return
        total = mask_statistics(ticket.masks).total
        say(f"{title}: {total.kept:,} of {total.weights:,} weights kept, mask {ticket.checksum[:12]}.")

    return announce
