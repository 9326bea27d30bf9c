"""Controls of lottery tickets: what a ticket is compared with, trained as the ticket was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from bnfree.errors import InputError
from bnfree.lightning_modules.experiments.files import on_top
from bnfree.lightning_modules.experiments.lottery.level import Level, train_level
from bnfree.lightning_modules.experiments.lottery.level_results import (
    CONTROLS,
    TICKET,
    ControlsResult,
    LevelResult,
    kind_title,
    level_name,
    read_level,
    read_levels,
    seed_name,
    sentence,
)
from bnfree.lightning_modules.experiments.lottery.level_tickets import (
    OF,
    carried_ticket,
    control_kind,
    control_ticket,
    last_checkpoint,
)
from bnfree.lightning_modules.experiments.lottery.plan import (
    STEP1,
    LotteryPlan,
    check_fit_unchanged,
    plan_lottery,
)
from bnfree.lightning_modules.experiments.lottery.settings import ControlSettings, LotterySettings
from bnfree.lightning_modules.experiments.lottery.started import SETTINGS, check_started, read_started
from bnfree.lightning_modules.training.messages import say
from bnfree.lightning_modules.training.run_directory import only_one
from bnfree.lightning_modules.training.settings import split_configs
from bnfree.plugins import resolve
from bnfree.tickets import Ticket, load_ticket, overlap
from bnfree.tickets.rewinding import seen_weights

REMEDY = "controls must be trained as the run was, so leave out the option that changes it."


def run_controls(settings: ControlSettings) -> ControlsResult:
    """Trains controls beside the tickets of a lottery run.

    Called again it goes on where it was stopped; finished controls are not trained again.

    Args:
        settings: which run, which of its tickets, and which controls.

    Returns:
        The controls and the tickets that they check, with accuracies and the paths of their files.

    Raises:
        InputError: a mistake in the settings; before anything is written, as far as it can be known.

    Example:
        >>> from bnfree.lightning_modules import ControlSettings, run_controls
        >>> settings = ControlSettings(directory="runs/digits_lottery", controls=["reinit", "my_controls.HalfSigns"])
        >>> [control.test_acc for control in run_controls(settings).controls]  # doctest: +SKIP
        [0.931, 0.925]
    """
    plan, places = plan_controls(settings)
    with only_one(plan.directory):
        controls = train_controls(plan, places, settings.controls)
    tickets = [read_level(plan.folder(seed, level)) for seed, level in places]
    return ControlsResult(plan.directory, tuple(controls), tuple(filter(None, tickets)))


def train_controls(plan: LotteryPlan, places: Sequence[tuple[int, int]], controls: Sequence[Any]) -> list[LevelResult]:
    """Trains, resumes or passes over controls; in all processes.

    Args:
        plan: of the run.
        places: seeds and levels that are to be checked; their tickets have been trained.
        controls: the controls; none: nothing happens.

    Raises:
        InputError: what `fit` raises, or files of the run that are gone.
    """
    if controls:
        titles = "; ".join(kind_title(control_kind(control)) for control in controls)
        say(f"{len(places) * len(controls)} trainings: {titles}.")
    return [_train_control(plan, control, seed, level) for seed, level in places for control in controls]


def _train_control(plan: LotteryPlan, control: Any, seed: int, level: int) -> LevelResult:
    kind, two_steps = control_kind(control), plan.finds_in_step1
    folder = plan.directory / seed_name(seed) / CONTROLS / kind / level_name(level)
    title = f"Seed {seed}, level {level} (density {plan.densities[level]:g}), {kind_title(kind)}"
    finished = read_level(folder)
    if finished is not None:
        say(f"{title} has finished: {sentence(finished)}.")
        return finished
    found = load_ticket(plan.folder(seed, level, two_steps) / TICKET)
    network = plan.network(two_steps)

    def make() -> Ticket:
        return control_ticket(plan, control, seed, found)

    def carry() -> Ticket:
        return carried_ticket(plan, load_ticket(folder / STEP1 / TICKET), folder / STEP1)

    def announce(ticket: Ticket | None) -> None:
        if ticket is None:
            return
        if ticket.details.get(OF) != found.checksum:
            raise InputError(
                f"{str(folder)!r} holds a control of another ticket, that of a level that has been replaced; remove it."
            )
        step = ", step 1 (real weights)" if two_steps else ""
        say(f"{title}{step}: {compare(network, ticket, found)}, mask {ticket.checksum[:12]}.")

    if two_steps:
        train_level(plan, Level(kind, level, seed, folder / STEP1, step1=True), make, announce)
        say(f"{title}, step 2 (binary weights).")
        result = train_level(plan, Level(kind, level, seed, folder), carry)
    else:
        result = train_level(plan, Level(kind, level, seed, folder), make, announce)
    say(f"{title}: {sentence(result)}.")
    return result


def check_controls(controls: Sequence[Any]) -> None:
    """Refuses controls that are not there, or that are named twice.

    Raises:
        InputError: which.
    """
    for control in controls:
        plugin = resolve("control", control, "controls")
        has_name = isinstance(control, str) or hasattr(plugin, "__qualname__")
        if not (has_name and callable(getattr(plugin, "draw", plugin))):
            raise InputError(
                f"controls={control!r} is no control; give a function of a ticket that returns masks and weights, or "
                "a class with such a function called draw."
            )
    kinds = [control_kind(control) for control in controls]
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise InputError(f"controls name {kind!r} twice; leave one out.")


def plan_controls(settings: ControlSettings) -> tuple[LotteryPlan, list[tuple[int, int]]]:
    """Reads the settings of a lottery run, and chooses the tickets that are to be checked; writes nothing.

    Args:
        settings: what the user has asked for.

    Returns:
        The run, and the seeds and levels.

    Raises:
        InputError: no lottery run, a seed or level that it has not or that has not finished, files that are gone, or
            options that would train otherwise than the run did.
    """
    check_controls(settings.controls)
    started = _started(settings)
    plan = plan_lottery(replace(started, fit=on_top(started.fit, settings.fit)))
    places = _places(plan, settings)
    for seed, level in places:
        _check_files(plan, seed, level)
    for seed in sorted({seed for seed, _ in places}):
        folder = plan.directory / seed_name(seed)
        kinds = map(control_kind, settings.controls)
        for place in ("level_*", *(f"{CONTROLS}/{kind}/level_*" for kind in kinds)):
            for config in sorted(folder.glob(f"{place}/**/config.yaml")):
                check_fit_unchanged(plan, seed, config.parent, REMEDY)
    return plan, places


def _started(settings: ControlSettings) -> LotterySettings:
    given, directory = str(settings.directory), Path(settings.directory).expanduser().absolute()
    if not directory.is_dir():
        what = "is a file" if directory.exists() else "does not exist"
        raise InputError(f"DIR={given!r} {what}; give the directory of a bnfree lottery run.")
    if (directory / SETTINGS).is_file():
        check_started(directory)
    started = read_started(directory)
    if started is None and read_levels(directory):
        raise InputError(
            f"DIR={given!r} has lost its {SETTINGS}, so that its settings are not known; the command bnfree "
            "lottery run that wrote it, given again, writes it anew."
        )
    if started is None:
        raise InputError(
            f"DIR={given!r} is no lottery run, for it has no {SETTINGS}; give a directory that bnfree lottery run has "
            "written."
        )
    words = [word.removeprefix("--config=") for word in split_configs(started.fit.arguments)[0]]
    for config in [*started.fit.configs, *words]:
        if not isinstance(config, Mapping) and Path(config).suffix and not Path(config).is_file():
            raise InputError(
                f"DIR={given!r} was trained with the config {config!r}, which does not exist here; give the command in "
                "the directory in which the run was started."
            )
    return started


def _places(plan: LotteryPlan, given: ControlSettings) -> list[tuple[int, int]]:
    known, last = plan.settings.seeds, len(plan.densities) - 1
    for seed in given.seeds or ():
        if seed not in known:
            raise InputError(f"--seeds: {seed} is no seed of this run, which has {', '.join(map(str, known))}.")
    for level in given.levels or ():
        if level == 0:
            raise InputError(f"--levels: level 0 is the dense network, which has no mask to check; give 1 to {last}.")
        if level > last:
            raise InputError(f"--levels: the run has no level {level}; give levels from 1 to {last}.")
    places = []
    for seed in given.seeds or known:
        for level in given.levels or range(1, last + 1):
            if read_level(plan.folder(seed, level)) is not None:
                places.append((seed, level))
            elif given.levels is not None:
                raise InputError(
                    f"level {level} of seed {seed} has not finished, so that there is nothing to compare with; let "
                    "bnfree lottery run end, or leave it out of --levels or --seeds."
                )
    if not places:
        raise InputError(
            f"DIR={str(given.directory)!r} has no finished level after the dense one; let bnfree lottery run go on "
            "first."
        )
    return places


def _check_files(plan: LotteryPlan, seed: int, level: int) -> None:
    start = plan.rewind_file(seed)
    if plan.settings.rewind in ("learning_rate", "none"):
        start = last_checkpoint(plan.folder(seed, 0, plan.finds_in_step1))
    for path in (plan.folder(seed, level, plan.finds_in_step1) / TICKET, start):
        if not path.is_file():
            raise InputError(f"{str(path)!r} is gone, from which controls of level {level} are made; put it back.")


def compare(network: nn.Module, control: Ticket, ticket: Ticket) -> str:
    """Says what a control shares with its ticket, and what it would share by chance.

    Args:
        network: says which layers are standardised; its weights are not used.
        control: the control.
        ticket: the ticket.
    """
    if control.checksum != ticket.checksum:
        shared = overlap(control.masks, ticket.masks)
        return (
            f"{_percent(shared.both / shared.second)} of the ticket's survivors are its own too (by chance "
            f"{_percent(shared.chance_both / shared.second)})"
        )
    agreeing, by_chance, kept = 0, 0.0, 0
    seen = (seen_weights(network, each.start(), each.masks) for each in (control, ticket))
    for (_, _, one, mask), (_, _, other, _) in zip(*seen, strict=True):
        first, second = ((weight > 0).flatten(1) for weight in (one, other))
        mask = mask.flatten(1)
        count, a, b = mask.sum(1), (first & mask).sum(1), (second & mask).sum(1)
        agreeing += int(((first == second) & mask).sum())
        by_chance += float(((a * b + (count - a) * (count - b)) / count.clamp(min=1)).sum())
        kept += int(count.sum())
    return (
        f"the ticket's mask; {_percent(agreeing / kept)} of the signs are the ticket's (by chance "
        f"{_percent(by_chance / kept)})"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
