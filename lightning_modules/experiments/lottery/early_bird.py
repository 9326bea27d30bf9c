"""Early-bird tickets: a dense training that stops when the mask has settled, then a level from its ticket.

Source: You et al., "Drawing early-bird tickets" (ICLR 2020, arXiv 1909.11957).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from bnfree.callbacks import EarlyBird
from bnfree.errors import InputError
from bnfree.lightning_modules.experiments.lottery.level import Level, train_level
from bnfree.lightning_modules.experiments.lottery.level_results import (
    REWIND,
    TICKET,
    EarlyBirdResult,
    LevelResult,
    read_level,
    seed_name,
    sentence,
)
from bnfree.lightning_modules.experiments.lottery.level_tickets import read_rewind_point, rewound
from bnfree.lightning_modules.experiments.lottery.lottery import announce
from bnfree.lightning_modules.experiments.lottery.plan import (
    REMEDY,
    LotteryPlan,
    arguments_of,
    callbacks_of,
    check_unchanged,
    other_callbacks,
    plan_lottery,
)
from bnfree.lightning_modules.experiments.lottery.settings import EarlyBirdSettings
from bnfree.lightning_modules.experiments.lottery.started import write_started
from bnfree.lightning_modules.training.messages import say
from bnfree.lightning_modules.training.parsed_fit import changes
from bnfree.lightning_modules.training.run_directory import is_child, latest_config, only_one
from bnfree.tickets import Ticket, load_ticket

CALLBACK = "bnfree.callbacks.EarlyBird"


def run_early_bird(settings: EarlyBirdSettings) -> EarlyBirdResult:
    """Searches for each seed until its mask has settled, and trains that ticket.

    Called again with the same settings it goes on where it was stopped.

    Args:
        settings: what is trained, how it is pruned, and when a mask has settled.

    Returns:
        The tickets, with accuracies and the paths of their files.

    Raises:
        InputError: a mistake in the settings, before anything is written; or a mask that has not settled.

    Example:
        >>> from bnfree.lightning_modules import EarlyBirdSettings, LotterySettings, run_early_bird
        >>> settings = EarlyBirdSettings(lottery=LotterySettings.read("digits_lottery"), density=0.5)
        >>> [ticket.test_acc for ticket in run_early_bird(settings).tickets]  # doctest: +SKIP
        [0.969]
    """
    if settings.lottery.controls:
        raise InputError("controls are those of the tickets of run_lottery; leave them out of lottery.")
    plan = plan_lottery(settings.lottery)
    check_unchanged(plan)
    search = _search_arguments(plan, settings)
    for seed in plan.settings.seeds:
        for folder in _folders(plan, seed, search["density"]):
            _check_unchanged(plan, seed, folder, search)
    with only_one(plan.directory):
        if not is_child():
            write_started(plan.directory, plan.settings)
        say(plan.description())
        tickets = [_search_and_train(plan, seed, search) for seed in plan.settings.seeds]
    return EarlyBirdResult(plan.directory, tuple(tickets))


def _search_and_train(plan: LotteryPlan, seed: int, arguments: dict[str, Any]) -> LevelResult:
    search, folder = _folders(plan, seed, arguments["density"])
    title = f"Seed {seed}, early bird (density {arguments['density']:g})"
    finished = read_level(folder)
    if finished is not None:
        say(f"{title} has finished: {sentence(finished)}.")
        return finished
    callback = {"class_path": CALLBACK, "init_args": arguments}
    place = Level("dense", 0, seed, search, callbacks=(callback,))
    dense = train_level(plan, place, announce=lambda ticket: say(f"{title}: dense, until it settles."))
    if not (search / TICKET).is_file():
        raise InputError(
            f"the mask of density {arguments['density']:g} has not settled in {dense.epochs} epochs (see "
            f"ticket/mask_distance in {str(search / 'metrics.csv')!r}); give more --trainer.max_epochs, a larger "
            "--tolerance or a smaller --window, and another --run_dir."
        )
    found = load_ticket(search / TICKET)
    say(f"{title}: settled after {found.details['epochs']} epochs.")
    number = _level(plan, arguments["density"])
    level = Level("early_bird", number, seed, folder, rewind_file=search / REWIND)
    result = train_level(plan, level, lambda: _rewound_ticket(plan, seed, found, search), partial(announce, title))
    say(f"{title}: {sentence(result)}.")
    return result


def _rewound_ticket(plan: LotteryPlan, seed: int, found: Ticket, search: Path) -> Ticket:
    """The ticket that a search has found, with what it starts from."""
    network = plan.network()
    network.load_state_dict(found.state_dict)
    start = read_rewind_point(search / REWIND)["state_dict"]
    how = {"seed": seed, "rewind": plan.settings.rewind, "rewind_point": plan.settings.rewind_point}
    return replace(
        found,
        rewind=rewound(plan, network, start, found.masks),
        source=f"{plan.directory.name}, seed {seed}, early bird",
        details={**found.details, **how},
    )


def _search_arguments(plan: LotteryPlan, given: EarlyBirdSettings) -> dict[str, Any]:
    """The arguments of the callback, which has checked them."""
    if plan.finds_in_step1:
        raise InputError(
            "lottery.find_in=step1 carries masks from one training to another, and early-bird has one; leave find_in "
            "out, or give the config of step 1."
        )
    density = given.density
    if density is None:
        if len(plan.densities) != 2:
            named = ", ".join(f"{density:g}" for density in plan.densities[1:])
            raise InputError(f"the lottery file has levels of densities {named}; say which with --density.")
        density = plan.densities[1]
    settings = plan.settings
    arguments: dict[str, Any] = {
        "density": density,
        "score": settings.score,
        "scope": settings.scope,
        "window": given.window,
        "tolerance": given.tolerance,
        # The rewind point is a file of the level's own.
        "rewind_point": None,
        "include": settings.include,
        "exclude": settings.exclude,
        "min_per_filter": settings.min_per_filter,
        "min_layer_density": settings.min_layer_density,
    }
    EarlyBird(**arguments)
    return arguments


def _folders(plan: LotteryPlan, seed: int, density: float) -> tuple[Path, Path]:
    """Run directories of the search and of the ticket's training."""
    base = plan.directory / seed_name(seed) / "early_bird" / f"density_{density:g}"
    return base / "search", base / f"level_{_level(plan, density):02d}"


def _level(plan: LotteryPlan, density: float) -> int:
    return plan.densities.index(density) if density in plan.densities[1:] else 1


def _check_unchanged(plan: LotteryPlan, seed: int, folder: Path, arguments: dict[str, Any]) -> None:
    if not (folder / "config.yaml").is_file():
        return
    earlier, now = yaml.safe_load(latest_config(folder).read_text()), plan.config(seed)
    for callback in callbacks_of(earlier):
        if callback.get("class_path") == CALLBACK:
            for name in ("window", "tolerance"):
                before, value = callback["init_args"].get(name), arguments[name]
                if before != value:
                    raise InputError(f"{str(folder)!r} has been searched with --{name} {before}, not {value}; {REMEDY}")
    for config in (earlier, now):
        config["trainer"]["callbacks"] = other_callbacks(config, adds="EarlyBird")
        if folder.name != "search":
            arguments_of(config, "model").pop("init_from", None)
    difference = next(changes(earlier, now), None)
    if difference is not None and not (plan.settings.rewind == "none" and folder.name != "search"):
        raise InputError(f"{str(folder)!r} has been trained with other settings ({difference}); {REMEDY}")
