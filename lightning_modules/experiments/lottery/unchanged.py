"""A lottery run that goes on must be the one that was started; what has changed is named."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from bnfree.errors import InputError
from bnfree.lightning_modules.experiments.lottery.checks import arguments_of, check_settings, other_callbacks
from bnfree.lightning_modules.experiments.lottery.level_results import seed_name
from bnfree.lightning_modules.experiments.lottery.lottery_file import DENSITY_KEYS, LotterySettings, plain
from bnfree.lightning_modules.experiments.lottery.planning import LotteryRun, fine_tuning_rate
from bnfree.lightning_modules.training.parsed_fit import changes
from bnfree.lightning_modules.training.run_directory import latest_config

SETTINGS = "lottery.yaml"
REMEDY = "give another --run_dir, or the earlier settings to go on with it."


def write_settings(run: LotteryRun) -> None:
    """Writes what a run was started with; seeds and levels that are added later are added to the file."""
    content: dict[str, Any] = {"options": run.options, "lottery": plain(run.settings)}
    path = run.directory / SETTINGS
    started = read_settings(run.directory)
    if started is not None:
        earlier, _ = started
        seeds = [*earlier.seeds, *(seed for seed in run.settings.seeds if seed not in earlier.seeds)]
        content["lottery"]["seeds"] = seeds
        if len(check_settings(earlier)) > len(run.densities):
            content["lottery"] |= {key: getattr(earlier, key) for key in DENSITY_KEYS}
    unfinished = path.with_name(f".{SETTINGS}")
    unfinished.write_text(yaml.safe_dump(content, sort_keys=False))
    unfinished.replace(path)


def check_unchanged(run: LotteryRun) -> None:
    """Refuses to go on in a directory with a run of other settings; seeds may be added, and levels at the end.

    Raises:
        InputError: which setting differs.
    """
    started = read_settings(run.directory)
    if started is None:
        return
    earlier, _ = started
    differing = [
        field.name
        for field in fields(LotterySettings)
        if field.name not in ("seeds", *DENSITY_KEYS)
        and getattr(earlier, field.name) != getattr(run.settings, field.name)
    ]
    then = check_settings(earlier)
    shared = min(len(then), len(run.densities))
    if then[:shared] != run.densities[:shared]:
        by_rate = None not in (earlier.rate, run.settings.rate)
        keys = [k for k in DENSITY_KEYS if by_rate and getattr(earlier, k) != getattr(run.settings, k)]
        differing += keys or ["densities"]
    if differing:
        name = differing[0]
        now, before = getattr(run.settings, name), getattr(earlier, name)
        if name == "densities":
            now, before = list(run.densities[1:]), list(then[1:])
        raise InputError(
            f"run_dir={str(run.directory)!r} has been started with other settings (lottery.{name}={now}, not "
            f"{before}); {REMEDY}"
        )
    for seed in run.settings.seeds:
        for config in sorted((run.directory / seed_name(seed)).glob("level_*/**/config.yaml")):
            check_fit_unchanged(run, seed, config.parent)


def check_fit_unchanged(run: LotteryRun, seed: int, folder: Path, remedy: str = REMEDY) -> None:
    """Refuses to train otherwise than a fit of the run did.

    Args:
        run: the run as it would go on.
        seed: seed of the fit.
        folder: run directory of the fit.
        remedy: the end of the message.

    Raises:
        InputError: which setting differs.
    """
    step1 = folder.name == "step1"
    earlier = yaml.safe_load(latest_config(folder).read_text())
    now = run.fit_settings(seed, step1)
    for settings in (earlier, now):
        # What the command itself adds to a level.
        settings["trainer"]["callbacks"] = other_callbacks(settings)
        if folder.name != "level_00" or run.finds_in_step1:
            arguments_of(settings, "model").pop("init_from", None)
    if run.settings.rewind == "none" and folder.name != "level_00":
        optimizer = (arguments_of(now, "model").get("optimizer") or {}).get("init_args") or {}
        if folder.parent.name != "level_00" and step1 == run.finds_in_step1:
            optimizer["lr"] = fine_tuning_rate(optimizer["lr"])
    difference = next(changes(earlier, now), None)
    if difference is not None:
        raise InputError(f"{str(folder)!r} has been trained with other settings ({difference}); {remedy}")


def read_settings(directory: Path) -> tuple[LotterySettings, list[str]] | None:
    """The settings that a run was started with, and its options of `bnfree fit`; None if there is no run.

    Raises:
        InputError: the file has been changed by hand into something else.
    """
    path = directory / SETTINGS
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = yaml.safe_load(path.read_text())
        return LotterySettings(**content["lottery"]), [str(option) for option in content.get("options") or []]
    except (AttributeError, KeyError, TypeError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{str(path)!r} cannot be read; give another --run_dir.") from error
