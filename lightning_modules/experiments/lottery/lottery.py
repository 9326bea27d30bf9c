"""Iterative magnitude pruning with rewinding: train dense; then prune, rewind and train, level by level, for each seed.

Source: Frankle et al., "Linear mode connectivity and the lottery ticket hypothesis" (ICML 2020, arXiv 1912.05671).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from bnfree.lightning_modules.experiments.lottery.controls import check_controls, train_controls
from bnfree.lightning_modules.experiments.lottery.level import Level, train_level
from bnfree.lightning_modules.experiments.lottery.level_results import (
    TICKET,
    LevelResult,
    LotteryResult,
    read_level,
    sentence,
)
from bnfree.lightning_modules.experiments.lottery.level_tickets import (
    carried_ticket,
    last_checkpoint,
    next_ticket,
    read_rewind_point,
)
from bnfree.lightning_modules.experiments.lottery.plan import LotteryPlan, check_unchanged, plan_lottery
from bnfree.lightning_modules.experiments.lottery.settings import LotterySettings
from bnfree.lightning_modules.experiments.lottery.started import write_started
from bnfree.lightning_modules.training.messages import say
from bnfree.lightning_modules.training.run_directory import is_child, only_one
from bnfree.tickets import Ticket, load_ticket, mask_statistics


def run_lottery(settings: LotterySettings) -> LotteryResult:
    """Looks for lottery tickets by iterative magnitude pruning with rewinding.

    Called again with the same settings it goes on where it was stopped: finished levels are not trained again. Seeds,
    and levels at the end, may be added.

    Args:
        settings: what is trained, how it is pruned, and where it goes.

    Returns:
        The levels and controls of the seeds, with accuracies, densities and the paths of their files.

    Raises:
        InputError: a mistake in the settings; before anything is written, as far as it can be known.

    Example:
        >>> from bnfree.lightning_modules import LotterySettings, run_lottery
        >>> result = run_lottery(LotterySettings.read("digits_lottery", seeds=[0]))  # doctest: +SKIP
        >>> [(ticket.density, ticket.test_acc) for ticket in result.tickets]  # doctest: +SKIP
        [(0.5, 0.975), (0.2, 0.972), (0.05, 0.975)]
    """
    check_controls(settings.controls)
    plan = plan_lottery(settings)
    check_unchanged(plan)
    with only_one(plan.directory):
        if not is_child():
            write_started(plan.directory, settings)
        say(plan.description())
        tickets = [ticket for seed in settings.seeds for ticket in train_seed(plan, seed)[1:]]
        controls = train_controls(plan, [(ticket.seed, ticket.level) for ticket in tickets], settings.controls)
    dense = [read_level(plan.folder(seed, 0)) for seed in settings.seeds]
    return LotteryResult(plan.directory, tuple(filter(None, dense)), tuple(tickets), tuple(controls))


def train_seed(plan: LotteryPlan, seed: int) -> list[LevelResult]:
    """Trains, resumes or passes over all levels of a seed; in all processes.

    Returns:
        The results, the dense level's first.

    Raises:
        InputError: what `fit` raises, or files of an earlier level that are gone.
    """
    results = []
    for level in range(len(plan.densities)):
        finished = read_level(plan.folder(seed, level))
        if finished is not None:
            say(f"{_title(plan, seed, level)} has finished: {sentence(finished)}.")
        elif plan.finds_in_step1:
            _found_level(plan, seed, level, step1=True)
            finished = _carried_level(plan, seed, level)
        else:
            finished = _found_level(plan, seed, level)
        results.append(finished)
    return results


def _found_level(plan: LotteryPlan, seed: int, level: int, step1: bool = False) -> LevelResult:
    """A level whose mask comes from the level before, and whose weights from the rewind point."""
    folder = partial(plan.folder, seed, step1=step1)

    def prune_and_rewind() -> Ticket:
        start = read_rewind_point(plan.rewind_file(seed))["state_dict"]
        return next_ticket(plan, seed, level, folder(level - 1), start, step1)

    place = Level("ticket" if level else "dense", level, seed, folder(level), step1, scored=True)
    title = _title(plan, seed, level) + (", step 1 (real weights)" if step1 else "")
    return _train(plan, place, title, prune_and_rewind)


def _carried_level(plan: LotteryPlan, seed: int, level: int) -> LevelResult:
    """A level whose mask and weights come from a training with real weights."""
    step1 = plan.folder(seed, level, step1=True)

    def carry() -> Ticket:
        return carried_ticket(plan, load_ticket(step1 / TICKET), step1)

    start = None if level else last_checkpoint(step1)
    place = Level("ticket" if level else "dense", level, seed, plan.folder(seed, level), init_from=start)
    return _train(plan, place, f"{_title(plan, seed, level)}, step 2 (binary weights)", carry)


def _train(plan: LotteryPlan, place: Level, title: str, make_ticket: Callable[[], Ticket]) -> LevelResult:
    result = train_level(plan, place, make_ticket if place.level else None, partial(announce, title))
    say(f"{title}: {sentence(result)}.")
    return result


def _title(plan: LotteryPlan, seed: int, level: int) -> str:
    return f"Seed {seed}, level {level} of {len(plan.densities) - 1} (density {plan.densities[level]:g})"


def announce(title: str, ticket: Ticket | None) -> None:
    """Says what is going to be trained.

    Args:
        title: of the level.
        ticket: its ticket; None: dense.
    """
    if ticket is None:
        say(f"{title}: dense.")
        return
    total = mask_statistics(ticket.masks).total
    say(f"{title}: {total.kept:,} of {total.weights:,} weights kept, mask {ticket.checksum[:12]}.")
