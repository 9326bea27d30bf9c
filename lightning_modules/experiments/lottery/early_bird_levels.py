"""`bnfree lottery early-bird`: a dense training that stops when the mask has settled, then a level from its ticket."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from bnfree.callbacks import EarlyBird
from bnfree.errors import InputError
from bnfree.lightning_modules.command.lottery.early_bird import EarlyBirdArguments
from bnfree.lightning_modules.command.lottery.report import run as report
from bnfree.lightning_modules.experiments.lottery.checks import arguments_of, is_ticket_callback
from bnfree.lightning_modules.experiments.lottery.level_results import (
    REWIND,
    TICKET,
    LevelResult,
    read_level,
    seed_name,
    sentence,
)
from bnfree.lightning_modules.experiments.lottery.level_training import Level, read_rewind_point, train_level
from bnfree.lightning_modules.experiments.lottery.levels import describe, prepare
from bnfree.lightning_modules.experiments.lottery.planning import LotteryRun
from bnfree.lightning_modules.experiments.lottery.pruning import rewound
from bnfree.lightning_modules.experiments.lottery.unchanged import REMEDY, write_settings
from bnfree.lightning_modules.training.messages import say
from bnfree.lightning_modules.training.parsed_fit import changes
from bnfree.lightning_modules.training.run_directory import is_child, latest_config, only_one
from bnfree.tickets import Ticket, load_ticket, mask_statistics

CALLBACK = "bnfree.callbacks.EarlyBird"


def run(action: str, given: EarlyBirdArguments) -> None:
    """Searches and trains for each seed.

    Args:
        action: its name, for messages.
        given: the command line.

    Raises:
        InputError: a mistake in what the user gave, before anything is written; or a mask that has not settled.
    """
    lottery = prepare([action, *given.rest])
    settings = _callback_settings(lottery, given)
    for seed in lottery.settings.seeds:
        for folder in _folders(lottery, seed, settings["density"]):
            _check_unchanged(lottery, seed, folder, settings)
    with only_one(lottery.directory):
        if not is_child():
            write_settings(lottery)
        describe(lottery)
        for seed in lottery.settings.seeds:
            _one_seed(lottery, seed, settings)
        if not is_child():
            report(["report", str(lottery.directory)])


def _callback_settings(lottery: LotteryRun, given: EarlyBirdArguments) -> dict[str, Any]:
    """The arguments of the callback, which has checked them."""
    if lottery.finds_in_step1:
        raise InputError(
            "lottery.find_in=step1 carries masks from one training to another, and early-bird has one; leave find_in "
            "out, or give the config of step 1."
        )
    density = given.density
    if density is None:
        if len(lottery.densities) != 2:
            named = ", ".join(f"{density:g}" for density in lottery.densities[1:])
            raise InputError(f"the lottery file has levels of densities {named}; say which with --density.")
        density = lottery.densities[1]
    settings = lottery.settings
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


def _folders(lottery: LotteryRun, seed: int, density: float) -> tuple[Path, Path]:
    """Run directories of the search and of the ticket's training."""
    base = lottery.directory / seed_name(seed) / "early_bird" / f"density_{density:g}"
    return base / "search", base / f"level_{_level(lottery, density):02d}"


def _level(lottery: LotteryRun, density: float) -> int:
    return lottery.densities.index(density) if density in lottery.densities[1:] else 1


def _check_unchanged(lottery: LotteryRun, seed: int, folder: Path, settings: dict[str, Any]) -> None:
    if not (folder / "config.yaml").is_file():
        return
    earlier, now = yaml.safe_load(latest_config(folder).read_text()), lottery.fit_settings(seed, step1=False)
    used = earlier["trainer"].get("callbacks") or []
    for callback in used:
        if callback.get("class_path") == CALLBACK:
            for name, value in settings.items():
                before = callback["init_args"].get(name)
                if name in ("window", "tolerance") and before != value:
                    raise InputError(f"{str(folder)!r} has been searched with --{name} {before}, not {value}; {REMEDY}")
    for config in (earlier, now):
        callbacks = config["trainer"].get("callbacks") or []
        config["trainer"]["callbacks"] = [c for c in callbacks if not is_ticket_callback(c) and not _is_early_bird(c)]
        if folder.name != "search":
            arguments_of(config, "model").pop("init_from", None)
    difference = next(changes(earlier, now), None)
    if difference is not None and not (lottery.settings.rewind == "none" and folder.name != "search"):
        raise InputError(f"{str(folder)!r} has been trained with other settings ({difference}); {REMEDY}")


def _is_early_bird(callback: Any) -> bool:
    return isinstance(callback, dict) and callback.get("class_path") == CALLBACK


def _one_seed(lottery: LotteryRun, seed: int, settings: dict[str, Any]) -> LevelResult:
    search, folder = _folders(lottery, seed, settings["density"])
    title = f"Seed {seed}, early bird (density {settings['density']:g})"
    finished = read_level(folder)
    if finished is not None:
        say(f"{title} has finished: {sentence(finished)}.")
        return finished
    callback = json.dumps({"class_path": CALLBACK, "init_args": settings})
    searching = replace(lottery, options=[*lottery.options, f"--trainer.callbacks+={callback}"])
    dense = train_level(
        searching, Level("dense", 0, seed, search), say_start=lambda ticket: say(f"{title}: dense, until it settles.")
    )
    if not (search / TICKET).is_file():
        raise InputError(
            f"the mask of density {settings['density']:g} has not settled in {dense.epochs} epochs (see "
            f"ticket/mask_distance in {str(search / 'metrics.csv')!r}); give more --trainer.max_epochs, a larger "
            "--tolerance or a smaller --window, and another --run_dir."
        )
    found = load_ticket(search / TICKET)
    say(f"{title}: settled after {found.details['epochs']} epochs.")

    def make_ticket() -> Ticket:
        network = lottery.network()
        network.load_state_dict(found.state_dict)
        start = read_rewind_point(lottery, seed, search / REWIND)["state_dict"]
        rewind = lottery.settings.rewind
        details = {**found.details, "seed": seed, "rewind": rewind, "rewind_point": lottery.settings.rewind_point}
        return replace(
            found,
            rewind=rewound(lottery, network, start, found.masks),
            source=f"{lottery.directory.name}, seed {seed}, early bird",
            details=details,
        )

    def announce(ticket: Ticket | None) -> None:
        if ticket is not None:
            total = mask_statistics(ticket.masks).total
            say(f"{title}: {total.kept:,} of {total.weights:,} weights kept, mask {ticket.checksum[:12]}.")

    level = _level(lottery, settings["density"])
    place = Level("early_bird", level, seed, folder, rewind_file=search / REWIND)
    result = train_level(lottery, place, make_ticket, say_start=announce)
    say(f"{title}: {sentence(result)}.")
    return result
